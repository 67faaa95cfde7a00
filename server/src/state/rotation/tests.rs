//! Each step of a rotation and of an end is the last one before a crash: the same command goes on.

use std::{fs, path::PathBuf};

use proto::{identity::KeyHash, rotation::FIRST_CA};

use super::*;
use crate::state::register::{Register, User};

/// A directory in which the files of a state may be.
struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        let dir = Self(tempfile::tempdir().expect("a directory"));
        common::machine::files::create_dir(&dir.path()).expect("made");
        dir
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("state")
    }
}

const OWNER: User = User { uid: 0, is_owner: true };

fn open(dir: &Path) -> State {
    State::open_or_create(dir).unwrap_or_else(|e| panic!("{e:?}"))
}

fn rotate(state: &State) -> CaNumber {
    let now = OffsetDateTime::now_utc();
    state.rotate_ca(now).map_err(Failure::from).unwrap_or_else(|e| panic!("{e:?}"))
}

fn enroll(state: &State, name: &str, key: u8) -> Device {
    let name = name.parse().expect("a name");
    state.register.enroll(&name, OWNER, None, KeyHash([key; 32]), i64::MAX, 1).expect("enrolled")
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .expect("read")
        .map(|entry| entry.expect("read").file_name().into_string().expect("text"))
        .filter(|name| name.ends_with(".key") || name.ends_with(".crt"))
        .collect();
    names.sort();
    names
}

#[test]
fn a_rotation_goes_on_after_a_crash_between_any_two_steps() {
    let made = Dir::new();
    let state = open(&made.path());
    rotate(&state);
    let files = CaFiles::of(2);
    let steps = [files.knocks.as_ref().expect("a name"), &files.key, &files.certificate];
    // The row comes after these.
    for done in 0..=steps.len() {
        let dir = Dir::new();
        let state = open(&dir.path());
        for name in &steps[..done] {
            let bytes = common::machine::files::read(&made.path().join(name)).expect("read");
            common::machine::files::create(&dir.path().join(name), &bytes).expect("written");
        }
        drop(state);
        let state = open(&dir.path());
        assert_eq!(state.authorities.get().current().number, FIRST_CA, "{done}: nobody has it yet");
        assert_eq!(rotate(&state), 2, "{done}");
        let same = fs::read(dir.path().join(&files.key)).expect("read")
            == fs::read(made.path().join(&files.key)).expect("read");
        assert_eq!(same, done >= 2, "{done}: what was made is used");
        assert_eq!(open(&dir.path()).authorities.get().current().number, 2);
    }
    // After the row, the server's certificate is missing.
    let dir = Dir::new();
    let state = open(&dir.path());
    rotate(&state);
    for name in [&files.server_key, &files.server_certificate] {
        fs::remove_file(dir.path().join(name)).expect("removed");
    }
    let state = open(&dir.path());
    let authorities = state.authorities.get();
    assert_eq!(authorities.current().number, 2);
    assert!(dir.path().join(&files.server_certificate).exists(), "a backup has this CA");
    let identity = authorities.current().server_identity(&dir.path(), OffsetDateTime::now_utc());
    assert_eq!(identity.expect("made").cert[1], *authorities.current().certificate());
}

#[test]
fn an_end_goes_on_after_a_crash_and_leaves_no_private_key() {
    let dir = Dir::new();
    let state = open(&dir.path());
    rotate(&state);
    // The row is written, and the key is still there.
    state.register.retire_cas(&[1], 7).expect("written");
    assert!(names(&dir.path()).contains(&"ca.key".to_owned()));
    drop(state);
    let state = open(&dir.path());
    let left = [
        "ca-2.crt",
        "ca-2.key",
        "ca.crt",
        "knocks-2.key",
        "server-2.crt",
        "server-2.key",
        "server.crt",
        "server.key",
    ];
    assert_eq!(names(&dir.path()), left);
    assert_eq!(state.ca_status(1).expect("read").cas.len(), 2);
}

#[test]
fn a_ca_ends_when_every_device_that_is_not_revoked_has_a_newer_one() {
    let dir = Dir::new();
    let state = open(&dir.path());
    let [laptop, lost] = [("laptop", 1), ("lost", 2)].map(|(name, key)| enroll(&state, name, key));
    assert!(matches!(state.retire_cas(true, 1), Err(CaError::Conflict(_))), "there is none");
    rotate(&state);
    let late = OffsetDateTime::now_utc().unix_timestamp() + OVERLAP;
    let due =
        |at| state.retire_unneeded(at).map_err(Failure::from).unwrap_or_else(|e| panic!("{e:?}"));
    assert_eq!(enroll(&state, "new", 3).ca, 2);
    let status = state.ca_status(1).expect("read");
    let behind: Vec<_> = status.behind.iter().map(|device| device.name.as_str()).collect();
    assert_eq!((behind, status.up_to_date), (vec!["laptop", "lost"], 1));
    assert!(due(late).is_empty());
    let refused = state.retire_cas(false, 1).map_err(Failure::from).err().expect("refused");
    let refused = format!("{refused:?}");
    assert!(refused.contains("2 devices do not") && refused.contains("`lost`"), "{refused}");
    state.register.has_ca(laptop.id, 2).expect("noted");
    assert!(due(late).is_empty());
    state.register.revoke(lost.id, None, 5).expect("revoked");
    assert!(due(late - 60).is_empty(), "the overlap has not passed");
    assert_eq!(due(late), [1]);
    assert!(due(late).is_empty(), "once");
    // One that is let in again recovers by proof of its key.
    state.register.restore(lost.id).expect("restored");
    let snapshot = state.register.snapshot().expect("read");
    assert!(snapshot.cas().answers(1, snapshot.ca_of(lost.id)));
    assert!(!snapshot.cas().answers(1, snapshot.ca_of(laptop.id)));
}

#[test]
fn eight_cas_are_known_and_the_oldest_ended_one_is_forgotten_with_its_files() {
    let dir = Dir::new();
    let state = open(&dir.path());
    for number in 2..=8 {
        assert_eq!(rotate(&state), number);
    }
    let full = state.rotate_ca(OffsetDateTime::now_utc());
    assert!(matches!(full, Err(CaError::Conflict(_))));
    assert!(state.retire_cas(false, 1).is_ok(), "there is no device");
    assert_eq!(rotate(&state), 9);
    let all: Vec<_> = state.authorities.get().all().iter().map(|ca| ca.number).collect();
    assert_eq!(all, [2, 3, 4, 5, 6, 7, 8, 9]);
    assert!(!dir.path().join("ca.crt").exists());
    assert_eq!(open(&dir.path()).authorities.get().current().number, 9);
}

#[test]
fn a_register_that_was_put_back_by_hand_learns_of_the_rotation_from_the_files() {
    let dir = Dir::new();
    let state = open(&dir.path());
    let copy = dir.path().join("copy");
    state.register.copy_to(&copy).expect("copied");
    rotate(&state);
    let fingerprint = state.authorities.get().current().fingerprint();
    drop(state);
    for side in ["-wal", "-shm"] {
        let _ = fs::remove_file(dir.path().join(format!("{}{side}", Register::FILE)));
    }
    fs::rename(&copy, dir.path().join(Register::FILE)).expect("put back");
    let state = open(&dir.path());
    assert_eq!(state.authorities.get().current().fingerprint(), fingerprint);
    // A lost certificate is an error, and no other one is made in its place.
    drop(state);
    fs::remove_file(dir.path().join("ca-2.crt")).expect("removed");
    fs::remove_file(dir.path().join("ca-2.key")).expect("removed");
    assert!(State::open_or_create(&dir.path()).is_err());
}

#[test]
fn a_rotation_whose_last_steps_fail_has_happened_and_the_next_start_ends_it() {
    let dir = Dir::new();
    let state = open(&dir.path());
    // No file can take the place of a directory.
    let blocked = dir.path().join(CaFiles::of(2).server_certificate);
    fs::create_dir(&blocked).expect("made");
    assert_eq!(rotate(&state), 2, "it is in the audit log");
    assert_eq!(state.authorities.get().current().number, 2);
    fs::remove_dir(&blocked).expect("removed");
    let state = open(&dir.path());
    assert_eq!(state.authorities.get().current().number, 2);
    assert!(blocked.is_file());
}

#[test]
fn secrets_that_devices_depend_on_are_not_made_anew() {
    let lost = |name: &str| {
        let dir = Dir::new();
        rotate(&open(&dir.path()));
        let path = dir.path().join(name);
        fs::remove_file(&path).expect("removed");
        let why = State::open_or_create(&dir.path()).err().expect("refused").to_string();
        assert!(why.contains(name) && why.contains("it is missing"), "{why}");
        assert!(!path.exists());
    };
    lost("knocks-2.key");
    lost("ca-2.crt");
    // A retired CA only reads: its devices have to enroll again, and all others go on.
    for name in ["knocks-2.key", "server-2.key"] {
        let dir = Dir::new();
        let state = open(&dir.path());
        rotate(&state);
        rotate(&state);
        assert!(state.retire_cas(false, 1).is_ok());
        drop(state);
        let path = dir.path().join(name);
        fs::remove_file(&path).expect("removed");
        let state = open(&dir.path());
        if let Some(second) = state.authorities.get().get(2) {
            assert!(second.server_identity(&dir.path(), OffsetDateTime::now_utc()).is_err());
        }
        assert!(!path.exists(), "{name}");
    }
}

#[test]
fn a_ca_that_another_process_ends_while_it_is_opened_is_not_taken_for_damaged() {
    use std::cell::RefCell;
    let dir = Dir::new();
    let state = open(&dir.path());
    rotate(&state);
    let stale = state.register.cas().expect("read");
    state.retire_cas(true, 1).map_err(Failure::from).expect("ended");
    let now = OffsetDateTime::now_utc();
    let open = |stale: Vec<CaRecords>| {
        let stale = RefCell::new(stale);
        let read = || match stale.borrow_mut().pop() {
            Some(records) => Ok(records),
            None => state.register.cas().map_err(Failure::from),
        };
        Authorities::open_newest(&dir.path(), read, &state.keys, now)
    };
    let opened = open(vec![stale.clone()]).unwrap_or_else(|e| panic!("{e:?}"));
    let signing: Vec<_> = opened.valid().map(|(authority, _)| authority.number).collect();
    assert_eq!((opened.all().len(), signing), (2, vec![2]));
    let damaged = open(vec![stale.clone(), stale]).err().expect("its key is missing");
    assert!(damaged.to_string().contains("damaged"), "{damaged}");
}

#[test]
fn an_older_state_of_the_register_does_not_replace_a_newer_one() {
    let dir = Dir::new();
    let state = open(&dir.path());
    let first = state.register.cas().expect("read");
    rotate(&state);
    let now = OffsetDateTime::now_utc();
    let opened = Authorities::open(&dir.path(), first, &state.keys, now).expect("opened");
    let mut changes = state.authorities.changes();
    assert!(!state.authorities.set(opened));
    assert!(!changes.has_changed().expect("in use"));
    assert_eq!(changes.borrow_and_update().current().number, 2);
}
