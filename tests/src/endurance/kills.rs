//! SIGKILL at seeded moments: what a command has reported as done is kept, whoever is killed.
//!
//! A device that enrolled stays enrolled, one that was revoked stays out, and what was killed before
//! it reported anything can be done again.

use std::{process::Stdio, time::Duration};

use client::profile::Profile;
use proto::{
    knock::KnockKey,
    wire::{ALPN_TUNNEL, Code},
};
use tokio::{io::AsyncWriteExt, process::Child};

use crate::{
    lab::Chance,
    raw,
    state_files::{devices, identity_file, profile},
    stranger::{Outcome, attempt},
    world::{Device, SOON, World},
};

/// The alert `certificate_revoked` (RFC 8446 section 6) as a code of QUIC (RFC 9001 section 4.8).
const CERTIFICATE_REVOKED: u64 = 0x100 + 44;
/// How many devices there are at most besides the one that is never revoked.
const MOST: usize = 8;
/// The latest moment of a kill after a command has begun.
const COMMAND: Duration = Duration::from_millis(60);
const SERVER_START: Duration = Duration::from_millis(150);
const ADIT_START: Duration = Duration::from_millis(200);
/// How often an attempt may come too early to be judged, and the pause before the next one.
const ATTEMPTS: usize = 40;
const PAUSE: Duration = Duration::from_millis(50);
/// How long `adit enroll` may wait for a server that was killed in between.
const ENROLL: Duration = Duration::from_secs(3);

/// How often each process was killed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Killed {
    pub aditd: u32,
    /// Commands of `aditd`, and `adit enroll`.
    pub commands: u32,
    pub adit: u32,
}

impl Killed {
    pub fn sum(self) -> u32 {
        self.aditd + self.commands + self.adit
    }
}

/// A device, and whether it may connect.
struct Tracked {
    name: String,
    device: Device,
    profile: Profile,
    is_revoked: bool,
}

/// Something that is promised once it is done.
#[derive(Debug, Clone, Copy)]
enum Deed {
    Enroll,
    Revoke(usize),
    Restore(usize),
    Forget(usize),
}

/// A deed under way.
struct Begun {
    deed: Deed,
    child: Child,
    /// The name and the code of a device that enrolls.
    enrolling: Option<(String, String)>,
}

struct Victims {
    world: World,
    chance: Chance,
    /// It is never revoked.
    honest: Device,
    honest_profile: Profile,
    tracked: Vec<Tracked>,
    /// Which of them was changed last.
    last: usize,
    made: u32,
    killed: Killed,
}

/// Kills `count` processes, one after another, and looks after each what is left.
///
/// # Panics
/// If something is lost that was promised.
pub async fn all(program: &str, count: u32, seed: u64) -> Killed {
    let world = World::start(program).await;
    let honest = world.device("honest").await;
    let mut victims = Victims {
        honest_profile: profile(&honest),
        honest,
        world,
        chance: Chance::new(seed),
        tracked: Vec::new(),
        last: 0,
        made: 0,
        killed: Killed::default(),
    };
    while victims.killed.sum() < count {
        match victims.killed.sum() % 4 {
            0 => victims.server_in_a_deed().await,
            1 => victims.a_command().await,
            2 => victims.server_in_its_start().await,
            _ => victims.adit().await,
        }
        victims.check().await;
    }
    victims.killed
}

impl Victims {
    async fn a_moment(&mut self, latest: Duration) {
        tokio::time::sleep(self.chance.between(Duration::ZERO, latest)).await;
    }

    fn deed(&mut self) -> Deed {
        let random = self.chance.number() as usize;
        let at = |len: usize| (random >> 8) % len.max(1);
        let some = |is_revoked: bool, this: &Self| {
            let all: Vec<_> = (0..this.tracked.len())
                .filter(|i| this.tracked[*i].is_revoked == is_revoked)
                .collect();
            all.get(at(all.len())).copied()
        };
        let (enrolled, revoked) = (some(false, self), some(true, self));
        match (random % 4, enrolled, revoked) {
            (0, _, Some(i)) => Deed::Restore(i),
            (1, _, Some(i)) if self.tracked.len() == MOST => Deed::Forget(i),
            (2, Some(i), _) => Deed::Revoke(i),
            (_, Some(i), None) if self.tracked.len() == MOST => Deed::Revoke(i),
            (_, _, Some(i)) if self.tracked.len() == MOST => Deed::Forget(i),
            _ => Deed::Enroll,
        }
    }

    async fn begin(&mut self, deed: Deed) -> Begun {
        let command = match deed {
            Deed::Enroll => {
                self.made += 1;
                let name = format!("device-{}", self.made);
                let code = self.world.invite(&name).await;
                let mut command = self.world.stranger(&name).command(&["enroll"]);
                let mut child = command
                    .stdin(Stdio::piped())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .expect("started");
                let mut stdin = child.stdin.take().expect("a pipe");
                let _ = stdin.write_all(code.as_bytes()).await;
                return Begun { deed, child, enrolling: Some((name, code)) };
            }
            Deed::Revoke(_) => "revoke",
            Deed::Restore(_) => "restore",
            Deed::Forget(_) => "forget",
        };
        let (state, config) = (self.world.state(), self.world.config());
        let place = |path: &std::path::Path| path.to_str().expect("a path").to_owned();
        let (state, config) = (place(&state), place(&config));
        let name = self.tracked[deed.index()].name.clone();
        let args = ["device", command, &name, "--state-dir", &state, "--config", &config];
        let mut command = self.world.programs.command("aditd", &args);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("started");
        Begun { deed, child, enrolling: None }
    }

    /// Whether the register says that a deed is done.
    async fn is_done(&self, begun: &Begun) -> bool {
        if let Some((name, _)) = &begun.enrolling {
            return identity_file(&self.world.stranger(name)).exists();
        }
        let tracked = &self.tracked[begun.deed.index()];
        let listed = devices(&self.world).await;
        let found = listed.iter().find(|device| device["name"] == tracked.name);
        match begun.deed {
            Deed::Revoke(_) => found.is_some_and(|device| device["revoked"].is_i64()),
            Deed::Restore(_) => found.is_some_and(|device| device["revoked"].is_null()),
            Deed::Enroll | Deed::Forget(_) => found.is_none(),
        }
    }

    /// A deed has ended, or was killed. What was promised must be so; what was not is done again.
    async fn finish(&mut self, begun: Begun, was_promised: bool) {
        let is_done = self.is_done(&begun).await;
        assert!(is_done || !was_promised, "{:?} was reported as done and is not", begun.deed);
        if !is_done {
            let again = match &begun.enrolling {
                // The server may have enrolled it before the device could store that.
                Some((name, code)) => self.world.stranger(name).enroll(code, &[]).await,
                None => {
                    let mut again = self.begin(begun.deed).await;
                    let status = tokio::time::timeout(SOON, again.child.wait()).await;
                    let status = status.expect("in time").expect("ended");
                    assert!(status.success(), "{:?} cannot be done again", begun.deed);
                    self.note(begun);
                    return;
                }
            };
            assert_eq!(again.code, Some(0), "cannot be enrolled again: {}", again.stderr);
        }
        self.note(begun);
    }

    fn note(&mut self, begun: Begun) {
        match begun.deed {
            Deed::Enroll => {
                let Some((name, _)) = begun.enrolling else { return };
                let device = self.world.stranger(&name);
                let profile = profile(&device);
                self.tracked.push(Tracked { name, device, profile, is_revoked: false });
            }
            Deed::Revoke(i) => self.tracked[i].is_revoked = true,
            Deed::Restore(i) => self.tracked[i].is_revoked = false,
            Deed::Forget(i) => drop(self.tracked.swap_remove(i)),
        }
        self.last = match begun.deed {
            Deed::Enroll => self.tracked.len() - 1,
            Deed::Revoke(i) | Deed::Restore(i) | Deed::Forget(i) => i,
        };
    }

    /// The server dies while something is done.
    async fn server_in_a_deed(&mut self) {
        let deed = self.deed();
        let mut begun = self.begin(deed).await;
        self.a_moment(COMMAND).await;
        self.world.kill_server().await;
        self.killed.aditd += 1;
        self.world.restart_server().await;
        let within = if begun.enrolling.is_some() { ENROLL } else { SOON };
        let ended = tokio::time::timeout(within, begun.child.wait()).await;
        let was_promised = matches!(ended, Ok(Ok(status)) if status.success());
        begun.child.kill().await.expect("it has ended");
        self.finish(begun, was_promised).await;
    }

    /// A command dies.
    async fn a_command(&mut self) {
        let deed = self.deed();
        let mut begun = self.begin(deed).await;
        self.a_moment(COMMAND).await;
        let ended = begun.child.try_wait().expect("a child");
        begun.child.kill().await.expect("killed");
        self.killed.commands += 1;
        self.finish(begun, ended.is_some_and(|status| status.success())).await;
    }

    /// The server dies, and another one dies before or after it is ready.
    async fn server_in_its_start(&mut self) {
        self.world.kill_server().await;
        let moment = self.chance.between(Duration::ZERO, SERVER_START);
        self.world.start_and_kill_server(moment).await;
        self.killed.aditd += 1;
        self.world.restart_server().await;
    }

    /// `adit up` dies in its start or while an answer runs.
    async fn adit(&mut self) {
        let mut up = self.honest.start(&[]).await;
        let mut app = None;
        if self.chance.happens(0.5) {
            let app = app.insert(raw::connect(up.address).await);
            app.write_all(raw::generate(-1, 1).as_bytes()).await.expect("sent");
            raw::read_exactly(app, 300).await;
        }
        self.a_moment(ADIT_START).await;
        up.adit.kill().await;
        drop(app);
        self.killed.adit += 1;
        self.honest.up(&[]).await.works().await;
        self.world
            .ollama
            .wait_for(|now| now.running == 0, SOON)
            .await
            .expect("nothing runs on for a process that was killed");
    }

    /// Whether the server lets a device in that has this certificate and knocks with this key.
    async fn is_let_in(&self, profile: &Profile, knock: &KnockKey) -> bool {
        let server = self.world.address().await;
        for _ in 0..ATTEMPTS {
            let own = profile.certified_key().expect("a certificate");
            let out = match attempt(server, profile, Some(own), &[ALPN_TUNNEL], knock).await {
                Outcome::In(_) => return true,
                out => out,
            };
            // The watcher of an `adit up` that was killed tells the server by a connection of its own.
            // A command that was killed has not told the server, which looks at the register itself a
            // moment later, and until then only sees that the knock is of another device.
            let is_early = [Code::Superseded, Code::Protocol].map(|code| code as u64);
            if !is_early.contains(&out.code()) {
                assert_eq!(out.code(), CERTIFICATE_REVOKED, "{out:?}");
                return false;
            }
            tokio::time::sleep(PAUSE).await;
        }
        panic!("{ATTEMPTS} attempts were neither let in nor refused as revoked")
    }

    /// The register can be read and says what was promised; of the devices, the one that was changed
    /// last, another one and the honest one are let in or not as it says.
    async fn check(&mut self) {
        let listed = devices(&self.world).await;
        assert_eq!(listed.len(), self.tracked.len() + 1, "{listed:?}");
        for tracked in &self.tracked {
            let found = listed.iter().find(|device| device["name"] == tracked.name);
            let is_revoked = found.map(|device| device["revoked"].is_i64());
            assert_eq!(is_revoked, Some(tracked.is_revoked), "{}: {listed:?}", tracked.name);
        }
        let honest = &self.honest_profile;
        assert!(self.is_let_in(honest, &honest.enrolled.knock_key).await, "it is locked out");
        let another = self.chance.number() as usize % self.tracked.len().max(1);
        for i in [self.last, another] {
            let Some(tracked) = self.tracked.get(i) else { continue };
            let profile = &tracked.profile;
            // The knock of a revoked device is not answered.
            let knocks = if tracked.is_revoked { honest } else { profile };
            let is_in = self.is_let_in(profile, &knocks.enrolled.knock_key).await;
            assert_eq!(is_in, !tracked.is_revoked, "{}", tracked.name);
        }
        if self.chance.happens(0.05)
            && let Some(tracked) = self.tracked.iter().find(|tracked| !tracked.is_revoked)
        {
            tracked.device.up(&[]).await.works().await;
        }
    }
}

impl Deed {
    /// Which of the tracked devices it is about.
    fn index(self) -> usize {
        match self {
            Self::Enroll => usize::MAX,
            Self::Revoke(i) | Self::Restore(i) | Self::Forget(i) => i,
        }
    }
}
