//! Random histories of a register: whatever is lost and put back, no revoked device is let in, and
//! none that is not revoked is locked out without being listed.

use std::collections::HashMap;

use proptest::prelude::*;
use proto::{
    epoch::Epoch,
    identity::{DeviceId, KeyHash},
};

use super::*;
use crate::state::register::{User, epoch::Proof};

/// What happens to a server. Numbers choose a device or a backup.
#[derive(Debug, Clone, Copy)]
enum Step {
    Enroll,
    Revoke(usize),
    /// The machine fails after the register is written and before the epoch's file is.
    RevokeAndCrash(usize),
    Backup,
    RestoreOver(usize),
    /// The register and the epoch's file are lost.
    RestoreAnew(usize),
    /// The register's file is copied back by hand.
    PutBack(usize),
    /// All of the disk is put back, so nothing here remembers.
    PutBackAll(usize),
    Connect(usize),
    /// The owner goes through the list, and knows who should be let in.
    Confirm,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let any = 0..100_usize;
    prop_oneof![
        3 => Just(Step::Enroll),
        3 => any.clone().prop_map(Step::Revoke),
        1 => any.clone().prop_map(Step::RevokeAndCrash),
        3 => Just(Step::Backup),
        2 => any.clone().prop_map(Step::RestoreOver),
        1 => any.clone().prop_map(Step::RestoreAnew),
        1 => any.clone().prop_map(Step::PutBack),
        1 => any.clone().prop_map(Step::PutBackAll),
        4 => any.prop_map(Step::Connect),
        2 => Just(Step::Confirm),
        1 => Just(Step::Restart),
    ]
}

struct Known {
    id: DeviceId,
    key: KeyHash,
    is_revoked: bool,
    remembers: Option<Epoch>,
}

struct World {
    dir: tempfile::TempDir,
    register: Option<Register>,
    devices: Vec<Known>,
    /// Each with the files as they were.
    backups: Vec<(Backup, Vec<u8>, Vec<u8>)>,
    /// All of the disk was put back, and nobody has noticed yet.
    is_unnoticed: bool,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        common::machine::files::create_dir(&dir.path().join("state")).expect("a directory");
        let mut world = Self {
            dir,
            register: None,
            devices: Vec::new(),
            backups: Vec::new(),
            is_unnoticed: false,
        };
        State::open_or_create(&world.state()).map(drop).unwrap_or_else(|e| panic!("{e:?}"));
        world.open();
        world
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.state().join(name)
    }

    fn open(&mut self) {
        self.register = None;
        self.register = Some(Register::open(&self.file(Register::FILE)).expect("a register"));
    }

    fn register(&self) -> &Register {
        self.register.as_ref().expect("it is open")
    }

    /// Replaces files while the server is stopped.
    fn put(&mut self, files: &[(&str, &[u8])]) {
        self.register = None;
        for side in ["register.sqlite-wal", "register.sqlite-shm"] {
            let _ = fs::remove_file(self.file(side));
        }
        for (name, bytes) in files {
            common::machine::files::replace(&self.file(name), bytes).expect("written");
        }
        self.open();
    }

    fn standings(&self) -> HashMap<DeviceId, Standing> {
        let devices = self.register().devices().expect("devices");
        devices.iter().map(|device| (device.id, device.standing())).collect()
    }

    fn revoke(&mut self, i: usize) {
        if let Some(device) = self.devices.get_mut(i) {
            device.is_revoked = true;
            let id = device.id;
            self.register().revoke(id, None, 5).expect("revoked");
        }
    }

    fn restore(&mut self, i: usize) {
        let state = self.state();
        self.register = None;
        self.backups[i].0.restore(&state, None, true).map(drop).unwrap_or_else(|e| panic!("{e:?}"));
        self.is_unnoticed = false;
        self.open();
    }

    fn step(&mut self, step: Step) {
        let pick = |i: usize, len: usize| (len > 0).then(|| i % len.max(1));
        match step {
            Step::Enroll => {
                let number = self.devices.len() as u8;
                let name = format!("device-{number}").parse().expect("a name");
                let (user, key) = (User { uid: 0, is_owner: true }, KeyHash([number; 32]));
                let made = self
                    .register()
                    .enroll(&name, user, None, key, i64::MAX / 2, 1)
                    .expect("enrolled");
                self.devices.push(Known { id: made.id, key, is_revoked: false, remembers: None });
            }
            Step::Revoke(i) => {
                if let Some(i) = pick(i, self.devices.len()) {
                    self.revoke(i);
                }
            }
            Step::RevokeAndCrash(i) => {
                if let Some(i) = pick(i, self.devices.len()) {
                    let before = fs::read(self.file(Register::EPOCH_FILE)).expect("an epoch");
                    self.revoke(i);
                    fs::write(self.file(Register::EPOCH_FILE), before).expect("written");
                    self.open();
                }
            }
            Step::Backup => {
                let made = Backup::make(&self.state(), None).unwrap_or_else(|e| panic!("{e:?}"));
                let epoch = fs::read(self.file(Register::EPOCH_FILE)).expect("an epoch");
                let bytes = BASE64.decode(made.register.as_bytes()).expect("base64");
                self.backups.push((made, bytes, epoch));
            }
            Step::RestoreOver(i) => {
                // A register that nobody has noticed to be put back vouches wrongly.
                if let Some(i) = pick(i, self.backups.len()).filter(|_| !self.is_unnoticed) {
                    self.restore(i);
                }
            }
            Step::RestoreAnew(i) => {
                if let Some(i) = pick(i, self.backups.len()) {
                    self.register = None;
                    for name in [Register::FILE, Register::EPOCH_FILE] {
                        let _ = fs::remove_file(self.file(name));
                    }
                    self.restore(i);
                }
            }
            Step::PutBack(i) => {
                if let Some(i) = pick(i, self.backups.len()).filter(|_| !self.is_unnoticed) {
                    let bytes = self.backups[i].1.clone();
                    self.put(&[(Register::FILE, &bytes)]);
                }
            }
            Step::PutBackAll(i) => {
                if let Some(i) = pick(i, self.backups.len()) {
                    let (_, bytes, epoch) = &self.backups[i];
                    let (bytes, epoch) = (bytes.clone(), epoch.clone());
                    self.put(&[(Register::FILE, &bytes), (Register::EPOCH_FILE, &epoch)]);
                    self.is_unnoticed = true;
                }
            }
            Step::Connect(i) => {
                let Some(i) = pick(i, self.devices.len()) else { return };
                let history = self.register().history().expect("a history");
                let may = |world: &Self, i: usize| {
                    let snapshot = world.register().snapshot().expect("a snapshot");
                    snapshot.judge(world.devices[i].id, world.devices[i].key).map(drop)
                };
                if may(self, i) == Err(proto::wire::Code::Revoked) {
                    return;
                }
                match self.devices[i].remembers.and_then(|remembered| history.hear(remembered)) {
                    Some(Proof::PutBack { lost }) => {
                        self.register().hold_all(lost).expect("held");
                        self.is_unnoticed = false;
                    }
                    Some(Proof::LostBefore { lost }) => {
                        self.register().note_lost(lost).expect("noted");
                    }
                    None => {}
                }
                if may(self, i).is_ok() {
                    let now = self.register().history().expect("a history").epoch;
                    self.devices[i].remembers = Some(now);
                }
            }
            Step::Confirm => {
                for (id, standing) in self.standings() {
                    let known = self.devices.iter().find(|device| device.id == id);
                    if standing == Standing::Held
                        && let Some(known) = known
                    {
                        match known.is_revoked {
                            true => self.register().revoke(id, None, 6).expect("revoked"),
                            false => self.register().confirm(id).expect("confirmed"),
                        }
                    }
                }
            }
            Step::Restart => self.open(),
        }
    }

    fn check(&self) {
        let standings = self.standings();
        for device in &self.devices {
            match (device.is_revoked, standings.get(&device.id)) {
                (true, Some(Standing::Admitted)) => {
                    assert!(self.is_unnoticed, "a revoked device is let in: {}", device.id);
                }
                (false, Some(Standing::Revoked)) => {
                    panic!("{} is locked out and not listed", device.id)
                }
                // A device that was enrolled after the backup is not known any more.
                _ => {}
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn no_history_lets_a_revoked_device_in_or_locks_another_out_unlisted(
        steps in prop::collection::vec(step(), 1..30)
    ) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
            world.check();
        }
    }
}

#[test]
fn a_backup_without_keys_has_no_secret_and_one_with_keys_needs_its_passphrase() {
    let world = World::new();
    let plain = Backup::make(&world.state(), None).unwrap_or_else(|e| panic!("{e:?}"));
    let passphrase = SecretString::from("correct horse".to_owned());
    let keys = Keys::read(&world.state()).unwrap_or_else(|e| panic!("{e:?}"));
    let text = plain.to_bytes().unwrap_or_else(|e| panic!("{e:?}"));
    let register = BASE64.decode(plain.register.as_bytes()).expect("base64");
    for secret in [&keys.0["ca.key"], &keys.0["endpoint.json"]] {
        for line in secret.lines().filter(|line| line.len() > 20) {
            for bytes in [&text, &register] {
                assert!(!bytes.windows(line.len()).any(|part| part == line.as_bytes()));
            }
        }
    }
    let sealed = BASE64
        .decode(keys.encrypt(&passphrase).unwrap_or_else(|e| panic!("{e:?}")).as_bytes())
        .expect("base64");
    let opened = Keys::decrypt(&sealed, &passphrase).expect("opened").expect("keys");
    assert_eq!(opened.0, keys.0);
    assert!(Keys::decrypt(&sealed, &SecretString::from("wrong".to_owned())).is_err());
    for cut in [0, 1, sealed.len() / 2, sealed.len() - 1] {
        assert!(!matches!(Keys::decrypt(&sealed[..cut], &passphrase), Ok(Some(_))), "{cut}");
    }
}
