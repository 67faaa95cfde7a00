//! Random histories of a server: whatever is rotated, lost and put back, no revoked device is let in,
//! and none that is not revoked is locked out without being listed.

use std::collections::HashMap;

use proptest::prelude::*;
use proto::{
    epoch::Epoch,
    identity::{DeviceId, KeyHash},
    invitation::Secret,
    knock::KnockKey,
    rotation::{CaNumber, CaState},
};

use super::*;
use crate::state::{
    authorities::create_knock_secret,
    register::{User, epoch::Proof},
    rotation::CaError,
};

const DAY: i64 = 24 * 3600;

/// What happens to a server. Numbers choose a device or a backup.
#[derive(Debug, Clone, Copy)]
enum Step {
    Enroll,
    /// Makes a code, of which a device may enroll later.
    Invite,
    Redeem(usize),
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
    RestoreDevice(usize),
    Rotate,
    /// The machine fails after so many of the new CA's files are written.
    RotateAndCrash(usize),
    /// The owner ends the old CAs.
    Retire,
    /// The machine fails after the end is in the register.
    RetireAndCrash,
    /// So many days pass, and old CAs end by themselves.
    Wait(i64),
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
        4 => any.clone().prop_map(Step::Connect),
        2 => Just(Step::Confirm),
        1 => Just(Step::Restart),
        1 => Just(Step::Invite),
        1 => any.clone().prop_map(Step::Redeem),
        1 => any.clone().prop_map(Step::RestoreDevice),
        2 => Just(Step::Rotate),
        1 => (0..4_usize).prop_map(Step::RotateAndCrash),
        1 => Just(Step::Retire),
        1 => Just(Step::RetireAndCrash),
        2 => (1..60_i64).prop_map(Step::Wait),
    ]
}

struct Known {
    id: DeviceId,
    key: KeyHash,
    is_revoked: bool,
    /// Its revocation was undone: a backup of before does not know that.
    was_undone: bool,
    remembers: Option<Epoch>,
    /// The CA that it has, and the key for its knocks that goes with it.
    ca: CaNumber,
    knock: KnockKey,
}

/// Why a device is not let in.
#[derive(Debug, PartialEq, Eq)]
enum Shut {
    /// The register says so.
    Refused(proto::wire::Code),
    /// Its CA has ended for too long, or is forgotten.
    TooLate,
    /// Its knock is nobody's.
    Silent,
}

struct World {
    dir: tempfile::TempDir,
    server: Option<State>,
    devices: Vec<Known>,
    codes: Vec<Secret>,
    /// How many devices there have ever been.
    made: u8,
    /// How far the clock is ahead of the machine's, in seconds.
    ahead: i64,
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
            server: None,
            devices: Vec::new(),
            codes: Vec::new(),
            made: 0,
            ahead: 0,
            backups: Vec::new(),
            is_unnoticed: false,
        };
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
        self.server = None;
        let opened = State::open_or_create(&self.state());
        self.server = Some(opened.unwrap_or_else(|e| panic!("{e:?}")));
    }

    fn server(&self) -> &State {
        self.server.as_ref().expect("it is open")
    }

    fn register(&self) -> &Register {
        &self.server().register
    }

    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc() + time::Duration::seconds(self.ahead)
    }

    /// A device has enrolled, and has what it was given.
    fn enrolled(&mut self, id: DeviceId, key: KeyHash) {
        let current = self.server().authorities.get().current().clone();
        self.register().has_ca(id, current.number).expect("noted");
        let (ca, knock) = (current.number, current.knock_key(id, key));
        self.devices.push(Known {
            id,
            key,
            is_revoked: false,
            was_undone: false,
            remembers: None,
            ca,
            knock,
        });
    }

    fn next_device(&mut self) -> (proto::identity::Name, KeyHash) {
        self.made += 1;
        let name = format!("device-{}", self.made).parse().expect("a name");
        (name, KeyHash([self.made; 32]))
    }

    /// Whether the door and the register let a device in, as the server asks them: by its knock, and
    /// by its certificate.
    fn lets_in(&self, device: &Known) -> Result<(), Shut> {
        let snapshot = self.register().snapshot().expect("a snapshot");
        let known = |id| Some((snapshot.key(id)?, snapshot.ca_of(id)));
        let authorities = self.server().authorities.get();
        let found = authorities.whose(&device.knock.knock(), known);
        let judged = snapshot.judge(device.id, device.key).map(drop);
        let records = authorities.records();
        let until = records.recovers_until(device.ca);
        let has_ended = match records.state(device.ca) {
            Some(CaState::Retired) => until.is_none_or(|until| until < self.now().unix_timestamp()),
            Some(_) => false,
            None => true,
        };
        match (found, judged) {
            (_, Err(code)) => Err(Shut::Refused(code)),
            _ if has_ended => Err(Shut::TooLate),
            (Some(found), Ok(())) if found == (device.id, device.ca) => Ok(()),
            _ => Err(Shut::Silent),
        }
    }

    fn rotate(&mut self) {
        match self.server().rotate_ca(self.now()) {
            Ok(_) | Err(CaError::Conflict(_)) => {}
            Err(CaError::Failed(e)) => panic!("{e:?}"),
        }
    }

    /// Replaces files while the server is stopped.
    fn put(&mut self, files: &[(&str, &[u8])]) {
        self.server = None;
        for side in ["register.sqlite-wal", "register.sqlite-shm"] {
            let _ = fs::remove_file(self.file(side));
        }
        for (name, bytes) in files {
            common::machine::files::replace(&self.file(name), bytes).expect("written");
        }
        self.open();
        self.revoked_again();
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
        self.server = None;
        // No CA of it is remembered: nobody could tell whether it is of this server.
        let is_of_another = !self.backups[i].0.is_of(&state);
        match self.backups[i].0.restore(&state, None, true) {
            Ok(_) => self.is_unnoticed = false,
            Err(e) => assert!(is_of_another, "{e:?}"),
        }
        self.open();
        self.revoked_again();
    }

    /// What was undone after the backup has to be undone again.
    fn revoked_again(&mut self) {
        let standings = self.standings();
        for device in self.devices.iter_mut().filter(|device| device.was_undone) {
            if standings.get(&device.id) == Some(&Standing::Revoked) {
                (device.is_revoked, device.was_undone) = (true, false);
            }
        }
    }

    fn step(&mut self, step: Step) {
        let pick = |i: usize, len: usize| (len > 0).then(|| i % len.max(1));
        match step {
            Step::Enroll => {
                let (name, key) = self.next_device();
                let user = User { uid: 0, is_owner: true };
                let made = self.register().enroll(&name, user, None, key, i64::MAX / 2, 1);
                self.enrolled(made.expect("enrolled").id, key);
            }
            Step::Invite => {
                let (name, _) = self.next_device();
                let (role, secret) = ("chat".parse().expect("a name"), Secret::generate());
                let invited = self.register().invite(&name, &role, None, &secret, i64::MAX / 2, 1);
                invited.expect("invited");
                self.codes.push(secret);
            }
            Step::Redeem(i) => {
                let Some(i) = pick(i, self.codes.len()) else { return };
                let (secret, (_, key)) = (self.codes.swap_remove(i), self.next_device());
                let redeemed = self.register().redeem(&*secret.token(), key, i64::MAX / 2, 1);
                // A restore and the end of its CA end a code.
                if let Ok(device) = redeemed.expect("read") {
                    self.enrolled(device.id, key);
                }
            }
            Step::RestoreDevice(i) => {
                let Some(i) = pick(i, self.devices.len()) else { return };
                let device = &mut self.devices[i];
                // A register that has been put back may not know of it.
                if device.is_revoked
                    && !self.is_unnoticed
                    && self.server.as_ref().expect("open").register.restore(device.id).is_ok()
                {
                    (device.is_revoked, device.was_undone) = (false, true);
                }
            }
            Step::Rotate => self.rotate(),
            Step::RotateAndCrash(done) => {
                let next = self.register().cas().expect("read").current().number + 1;
                let names = CaFiles::of(next);
                if done > 0 {
                    create_knock_secret(&self.state(), &names).expect("written");
                }
                if done > 1 {
                    Ca::open_number(&self.state(), next, self.now()).expect("made");
                }
                if done > 2 {
                    self.rotate();
                    let _ = fs::remove_file(self.file(&names.server_certificate));
                }
                self.open();
            }
            Step::Retire => match self.server().retire_cas(true, self.now().unix_timestamp()) {
                Ok(_) | Err(CaError::Conflict(_)) => {}
                Err(CaError::Failed(e)) => panic!("{e:?}"),
            },
            Step::RetireAndCrash => {
                let old: Vec<_> =
                    self.register().cas().expect("read").old().map(|ca| ca.number).collect();
                let now = self.now().unix_timestamp();
                self.register().retire_cas(&old, now).expect("written");
                self.open();
            }
            Step::Wait(days) => {
                self.ahead += days * DAY;
                let due = self.server().retire_unneeded(self.now().unix_timestamp());
                due.map(drop).map_err(Failure::from).unwrap_or_else(|e| panic!("{e:?}"));
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
                    self.server = None;
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
                let judged = self.lets_in(&self.devices[i]);
                let is_known = !matches!(
                    judged,
                    Err(Shut::Refused(proto::wire::Code::Revoked) | Shut::TooLate | Shut::Silent)
                );
                if !is_known {
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
                if self.lets_in(&self.devices[i]).is_ok() {
                    let now = self.register().history().expect("a history").epoch;
                    let current = self.server().authorities.get().current().clone();
                    let device = &mut self.devices[i];
                    device.remembers = Some(now);
                    if device.ca == current.number {
                        // It has knocked with the key of this one.
                        let id = device.id;
                        self.register().has_ca(id, current.number).expect("noted");
                    } else {
                        // The server learns of it when the device comes again.
                        device.ca = current.number;
                        device.knock = current.knock_key(device.id, device.key);
                    }
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
                            false => drop(self.register().confirm(Some(id)).expect("confirmed")),
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
            let shut = self.lets_in(device).err();
            match (device.is_revoked, standings.get(&device.id)) {
                (true, _) if shut.is_none() => {
                    assert!(self.is_unnoticed, "a revoked device is let in: {}", device.id);
                }
                (false, Some(Standing::Revoked)) => {
                    panic!("{} is locked out and not listed", device.id)
                }
                (false, Some(Standing::Admitted)) => {
                    let is_fine = matches!(shut, None | Some(Shut::TooLate));
                    assert!(is_fine, "{} with CA {} is locked out: {shut:?}", device.id, device.ca);
                }
                // A device that was enrolled after the backup is not known any more.
                _ => {}
            }
        }
    }
}

/// How many histories: many in the long form of tests.
fn cases() -> u32 {
    if std::env::var_os("ADIT_LONG_TESTS").is_some() { 400 } else { 24 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]
    #[test]
    fn no_history_lets_a_revoked_device_in_or_locks_another_out_unlisted(
        steps in prop::collection::vec(step(), 1..40)
    ) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
            world.check();
        }
    }
}

#[test]
fn a_register_of_before_more_cas_than_a_server_remembers_can_be_put_back() {
    let mut world = World::new();
    for step in [Step::Enroll, Step::Enroll, Step::Backup] {
        world.step(step);
    }
    // The first CA and its files are forgotten.
    for _ in 0..9 {
        for step in [Step::Rotate, Step::Connect(0), Step::Connect(0), Step::Retire] {
            world.step(step);
            world.check();
        }
    }
    assert!(!world.file("ca.crt").exists());
    for step in [Step::RestoreOver(0), Step::PutBack(0), Step::Restart, Step::Confirm] {
        world.step(step);
        world.check();
    }
    assert_eq!(world.lets_in(&world.devices[0]), Ok(()));
    assert_eq!(world.lets_in(&world.devices[1]), Err(Shut::TooLate));
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
