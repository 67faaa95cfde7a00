//! Which attempts are answered, how often, and how many at once.

use proto::{
    identity::{DeviceId, KeyHash},
    invitation::Secret,
    knock::{KnockKey, SharedKey},
};

use super::*;
use crate::{
    policy::services::Services,
    state::{
        authorities::Authorities,
        register::{Register, User, default_role},
    },
};

struct World {
    _dir: tempfile::TempDir,
    register: Register,
    keys: EndpointKeys,
    admission: Admission,
    next: u8,
}

const NOW: i64 = 1000;
const OWNER: User = User { uid: 0, is_owner: true };

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let register = Register::open(&dir.path().join(Register::FILE)).expect("a register");
        let keys = EndpointKeys::generate();
        let policy = Policy::new(Default::default(), Arc::default(), Services::default());
        let authorities = SharedAuthorities::new(Authorities::first(dir.path(), &keys));
        let admission = Admission::new(&keys, authorities, Arc::new(policy));
        Self { _dir: dir, register, keys, admission, next: 0 }
    }

    fn device(&mut self) -> (DeviceId, KnockKey) {
        self.next += 1;
        let (name, key) = (format!("d{}", self.next), KeyHash([self.next; 32]));
        let name = name.parse().expect("a name");
        let device = self.register.enroll(&name, OWNER, None, key, 9999, NOW).expect("enrolled");
        self.refresh();
        (device.id, self.admission.authorities.get().current().knock_key(device.id, key))
    }

    fn refresh(&self) {
        self.admission.policy.update(self.register.snapshot().expect("read"));
    }

    /// Makes a new knock, which is heard and judged.
    fn attempt(&self, key: &KnockKey, from: SocketAddr, proved: bool) -> AttemptVerdict {
        let knock = key.knock();
        if self.admission.hear(&knock, from, NOW) {
            self.admission.judge(&knock, from, proved, NOW)
        } else {
            AttemptVerdict::Ignore(Reason::Stranger)
        }
    }
}

fn host(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 4000))
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn is_accepted(verdict: &AttemptVerdict) -> bool {
    matches!(verdict, AttemptVerdict::Accept(_))
}

#[test]
fn packets_without_a_knock_are_not_answered() {
    let mut world = World::new();
    world.device();
    let (other, shared) = (SharedKey::generate(), world.keys.shared_knock.clone());
    for knock in [&[][..], &[0; 8], &[0; 20], &other.knock(), &shared.knock()] {
        assert!(!world.admission.hear(knock, host(7), NOW), "{knock:?}");
        let verdict = world.admission.judge(knock, host(7), true, NOW);
        assert!(matches!(verdict, AttemptVerdict::Ignore(Reason::Stranger)), "{knock:?}");
    }
    assert_eq!(world.admission.ignored(Reason::Stranger), 10);
}

#[test]
fn a_remote_address_is_proved_before_a_handshake() {
    let mut world = World::new();
    let (id, key) = world.device();
    assert!(matches!(world.attempt(&key, host(7), false), AttemptVerdict::Retry));
    let AttemptVerdict::Accept(slot) = world.attempt(&key, host(7), true) else { panic!("proved") };
    assert_eq!(slot.knocker(), Knocker::Device(id));
    assert!(is_accepted(&world.attempt(&key, local(1), false)));
}

#[test]
fn the_knock_of_a_revoked_device_is_not_answered() {
    let mut world = World::new();
    let (id, key) = world.device();
    let (_, good) = world.device();
    let knock = key.knock();
    assert!(world.admission.hear(&knock, local(1), NOW));
    world.register.revoke(id, None, NOW).expect("revoked");
    world.refresh();
    let verdict = world.admission.judge(&knock, local(1), false, NOW);
    assert!(matches!(verdict, AttemptVerdict::Ignore(Reason::Stranger)), "{verdict:?}");
    assert!(!world.admission.hear(&key.knock(), local(1), NOW));
    world.register.forget(id, false).expect("forgotten");
    world.refresh();
    assert!(!world.admission.hear(&key.knock(), local(1), NOW));
    assert!(is_accepted(&world.attempt(&good, local(1), false)));
}

#[test]
fn an_invitations_knock_leads_to_enrollment_until_the_invitation_ends() {
    let world = World::new();
    let secret = Secret::generate();
    let name = "new".parse().expect("a name");
    world.register.invite(&name, &default_role(), None, &secret, NOW + 1, NOW).expect("invited");
    world.refresh();
    let key = secret.knock_key().into();
    let AttemptVerdict::Accept(slot) = world.attempt(&key, local(1), false) else { panic!("open") };
    assert!(matches!(slot.knocker(), Knocker::Invited(_)));
    assert!(!world.admission.hear(&key.knock(), local(1), NOW + 1));
}

#[test]
fn a_copied_knock_is_not_answered() {
    let mut world = World::new();
    let (_, key) = world.device();
    let knock = key.knock();
    assert!(world.admission.hear(&knock, host(1), NOW));
    assert!(!world.admission.hear(&knock, host(2), NOW), "from elsewhere");
    assert!(matches!(world.admission.judge(&knock, host(1), false, NOW), AttemptVerdict::Retry));
    let verdict = world.admission.judge(&knock, host(1), true, NOW);
    assert!(is_accepted(&verdict));
    drop(verdict);
    for proved in [false, true] {
        let again = world.admission.judge(&knock, host(1), proved, NOW);
        assert!(matches!(again, AttemptVerdict::Ignore(Reason::Replayed)), "{again:?}");
    }
}

#[test]
fn the_attempts_of_one_address_are_limited_and_those_of_its_neighbour_are_not() {
    let mut world = World::new();
    let devices: Vec<_> = (0..20).map(|_| world.device().1).collect();
    let tries = |host: &dyn Fn(usize) -> SocketAddr| {
        let all = (0..200).map(|i| world.attempt(&devices[i % 20], host(i), true));
        all.filter(is_accepted).count()
    };
    let accepted = tries(&|_| host(7));
    assert!((50..100).contains(&accepted), "{accepted}");
    assert!(is_accepted(&world.attempt(&devices[0], host(8), true)));
    let v6 = |i: usize| SocketAddr::from(([0xfd00, 0, 0, 0, i as u16, 0, 0, 1], 1));
    let accepted = tries(&v6);
    assert!(accepted < 100, "the addresses of one /64 count as one: {accepted}");
}

#[test]
fn the_attempts_of_one_device_over_ssh_are_limited_too() {
    let mut world = World::new();
    let ((_, greedy), (_, good)) = (world.device(), world.device());
    let heard = |key: &KnockKey| world.admission.hear(&key.knock(), local(1), NOW);
    let count = (0..1000).filter(|_| heard(&greedy)).count();
    assert!((50..200).contains(&count), "{count}");
    assert!(heard(&good));
}

#[test]
fn unfinished_handshakes_of_one_device_do_not_keep_others_out() {
    let mut world = World::new();
    let (_, greedy) = world.device();
    let held: Vec<_> = (0..40).map(|_| world.attempt(&greedy, local(1), false)).collect();
    let count = held.iter().filter(|verdict| is_accepted(verdict)).count();
    assert_eq!(count, slots::SLOTS_EACH);
    let (_, good) = world.device();
    assert!(is_accepted(&world.attempt(&good, local(1), false)));
    drop(held);
    assert_eq!(lock(&world.admission.slots).len(), 0, "nothing is remembered of what is over");
}

#[test]
fn closed_admission_answers_nobody() {
    let mut world = World::new();
    let (_, key) = world.device();
    world.admission.close();
    assert!(!world.admission.hear(&key.knock(), local(1), NOW));
}
