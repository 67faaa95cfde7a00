//! Distinguishes a client's packets from copies that somebody on the network has recorded. Names no
//! clock and no socket.
//!
//! The server remembers the knocks that it has heard; a knock has no time in it. The clock of a
//! laptop or of a box may be wrong by years: such a client would get no answer and could not know
//! why.

use std::{net::SocketAddr, time::Duration};

use common::transport::HANDSHAKE_WITHIN;
use proto::knock::Knock;

use super::recent::Recent;

/// How many knocks are remembered of devices, of crowds (many clients with one key), and of
/// attempts over the limit; each kind has its own memory. Only the holder of a key can make a
/// knock, and a device may knock ten times per second: so no device can make the server forget the
/// knocks of others within an hour, and a crowd or a flood only affects its own kind.
const KNOCKS: usize = 1 << 15;
/// Datagrams with one knock that are accepted: a client that gets no answer repeats its first two
/// about six times within [`HANDSHAKE_WITHIN`].
const DATAGRAMS: u32 = 64;
/// Retry packets that one knock gets. A client sends two datagrams each time.
const RETRIES: u32 = 8;
/// How many of the chosen connection IDs are remembered.
const ISSUED: usize = 1 << 13;
/// How long a client may take to answer to a connection ID that this server chose. Shorter than the
/// lifetime of a Retry token (15 s), because QUIC answers a client with an expired token.
const ISSUED_FOR: Duration = Duration::from_secs(14);

/// The judgement of a datagram with a knock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hearing {
    /// From the client: the first, or repeated from the same address a short time later.
    Genuine,
    /// From the client, but it tries too often.
    TooOften,
    Replayed,
}

/// Groups of keys whose knocks are remembered together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyGroup {
    /// Devices, each with a key of its own.
    Devices,
    /// Keys that many clients may have: their attempts are not counted.
    Crowds,
}

/// What is remembered of each knock.
#[derive(Debug)]
pub(super) struct Heard {
    devices: Recent<Knock, Attempt>,
    crowds: Recent<Knock, Attempt>,
    too_many: Recent<Knock, Attempt>,
}

#[derive(Debug)]
struct Attempt {
    from: SocketAddr,
    since: Duration,
    datagrams: u32,
    retries: u32,
    is_counted: bool,
    is_taken: bool,
}

impl Attempt {
    fn begun(from: SocketAddr, since: Duration) -> Self {
        Self { from, since, datagrams: 0, retries: 0, is_counted: false, is_taken: false }
    }
}

impl Default for Heard {
    fn default() -> Self {
        let recent = || Recent::new(KNOCKS);
        Self { devices: recent(), crowds: recent(), too_many: recent() }
    }
}

impl Heard {
    /// Judges a datagram whose knock was made with a key of this group. `now` is a time since any
    /// fixed moment. `may_try` counts an attempt of the knock's owner, and returns whether that is
    /// within its limit.
    pub(super) fn hear(
        &mut self,
        knock: &Knock,
        group: KeyGroup,
        from: SocketAddr,
        now: Duration,
        may_try: impl FnOnce() -> bool,
    ) -> Hearing {
        let mut may_try = Some(may_try);
        if self.get_mut(knock).is_none() {
            let is_counted = may_try.take().is_some_and(|may_try| may_try());
            let memory = match group {
                _ if !is_counted => &mut self.too_many,
                KeyGroup::Devices => &mut self.devices,
                KeyGroup::Crowds => &mut self.crowds,
            };
            memory.put(*knock, Attempt { is_counted, ..Attempt::begun(from, now) });
        }
        let Some(attempt) = self.get_mut(knock) else { return Hearing::Replayed };
        attempt.datagrams = attempt.datagrams.saturating_add(1);
        let is_its_own = attempt.from == from
            && now.saturating_sub(attempt.since) < HANDSHAKE_WITHIN
            && attempt.datagrams <= DATAGRAMS;
        if !is_its_own {
            return Hearing::Replayed;
        }
        attempt.is_counted = attempt.is_counted || may_try.is_some_and(|may_try| may_try());
        if attempt.is_counted { Hearing::Genuine } else { Hearing::TooOften }
    }

    fn get_mut(&mut self, knock: &Knock) -> Option<&mut Attempt> {
        let Self { devices, crowds, too_many } = self;
        devices.get_mut(knock).or_else(|| crowds.get_mut(knock)).or_else(|| too_many.get_mut(knock))
    }

    /// Whether the sender of this knock may be sent another Retry.
    pub(super) fn retry(&mut self, knock: &Knock) -> bool {
        let Some(attempt) = self.get_mut(knock) else { return false };
        attempt.retries += 1;
        !attempt.is_taken && attempt.retries <= RETRIES
    }

    /// Whether a handshake may begin with this knock: each knock has one.
    pub(super) fn may_take(&mut self, knock: &Knock) -> bool {
        self.get_mut(knock).is_some_and(|attempt| !attempt.is_taken)
    }

    /// Notes that the handshake of this knock has begun.
    pub(super) fn take(&mut self, knock: &Knock) {
        if let Some(attempt) = self.get_mut(knock) {
            attempt.is_taken = true;
        }
    }
}

/// The connection IDs that this server has chosen in handshakes, and for which clients.
#[derive(Debug)]
pub(super) struct IssuedIds(Recent<Vec<u8>, (SocketAddr, Duration)>);

impl Default for IssuedIds {
    fn default() -> Self {
        Self(Recent::new(ISSUED))
    }
}

impl IssuedIds {
    /// Notes the connection ID in a datagram that the server sends in a handshake. `now` is a time
    /// since any fixed moment.
    pub(super) fn sent(&mut self, datagram: &[u8], to: SocketAddr, now: Duration) {
        let Some(id) = source_id(datagram) else { return };
        match self.0.get_mut(&id.to_vec()) {
            Some(issued) => *issued = (to, now),
            None => self.0.put(id.to_vec(), (to, now)),
        }
    }

    /// Whether the client at `from` may use this connection ID in a handshake.
    pub(super) fn knows(&mut self, id: &[u8], from: SocketAddr, now: Duration) -> bool {
        self.0
            .get_mut(&id.to_vec())
            .is_some_and(|(to, since)| *to == from && now.saturating_sub(*since) < ISSUED_FOR)
    }
}

/// The Destination Connection ID of a packet with a long header (RFC 8999 section 5.1).
pub(crate) fn destination_id(datagram: &[u8]) -> Option<&[u8]> {
    let len = usize::from(*datagram.get(5)?);
    datagram.get(6..6 + len)
}

/// The Source Connection ID of such a packet.
fn source_id(datagram: &[u8]) -> Option<&[u8]> {
    let at = 6 + destination_id(datagram)?.len();
    let len = usize::from(*datagram.get(at)?);
    datagram.get(at + 1..at + 1 + len)
}

#[cfg(test)]
mod tests {
    use proto::knock::KNOCK_LEN;

    use super::*;

    const KNOCK: Knock = [7; KNOCK_LEN];

    fn at(last: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], port))
    }

    #[test]
    fn a_knock_is_accepted_from_its_first_address_and_for_the_time_of_a_handshake() {
        let ms = Duration::from_millis;
        let mut heard = Heard::default();
        use Hearing::{Genuine, Replayed};
        for (what, from, now, hearing) in [
            ("the first time", at(1, 1), ms(5), Genuine),
            ("the other half of the first flight", at(1, 1), ms(5), Genuine),
            ("sent again, because no answer came", at(1, 1), ms(1005), Genuine),
            ("recorded, and sent from elsewhere", at(2, 1), ms(1006), Replayed),
            ("from another port", at(1, 2), ms(1007), Replayed),
            ("again by the client itself", at(1, 1), ms(7000), Genuine),
            ("when its handshake must be over", at(1, 1), ms(10_005), Replayed),
            ("a day later", at(1, 1), ms(86_400_000), Replayed),
        ] {
            assert_eq!(
                heard.hear(&KNOCK, KeyGroup::Devices, from, now, || true),
                hearing,
                "{what}"
            );
        }
        assert_eq!(
            heard.hear(&[8; KNOCK_LEN], KeyGroup::Devices, at(2, 1), ms(0), || true),
            Genuine,
            "another knock"
        );
    }

    #[test]
    fn one_knock_has_a_bounded_number_of_datagrams_and_retries_and_one_handshake() {
        let mut heard = Heard::default();
        let hear = |_: &u32| {
            heard.hear(&KNOCK, KeyGroup::Devices, at(1, 1), Duration::ZERO, || true)
                != Hearing::Replayed
        };
        let listened = (0..1000).filter(hear).count();
        assert_eq!(listened, DATAGRAMS as usize);
        assert_eq!((0..1000).filter(|_| heard.retry(&KNOCK)).count(), RETRIES as usize);
        assert!(heard.may_take(&KNOCK), "it has been refused nothing yet");
        heard.take(&KNOCK);
        assert!(!heard.may_take(&KNOCK));

        let next = [8; KNOCK_LEN];
        heard.hear(&next, KeyGroup::Devices, at(1, 1), Duration::ZERO, || true);
        heard.take(&next);
        assert!(!heard.retry(&next), "a copy of what has led to a handshake");
        assert!(!heard.retry(&[9; KNOCK_LEN]) && !heard.may_take(&[9; KNOCK_LEN]), "never heard");
    }

    #[test]
    fn an_attempt_is_counted_once_and_one_over_the_limit_can_be_repeated_later() {
        let mut heard = Heard::default();
        let mut hear =
            |may| heard.hear(&KNOCK, KeyGroup::Devices, at(1, 1), Duration::ZERO, || may);
        assert_eq!(hear(false), Hearing::TooOften);
        assert_eq!(hear(false), Hearing::TooOften, "sending it twice does not help");
        assert_eq!(hear(true), Hearing::Genuine);
        assert_eq!(hear(false), Hearing::Genuine, "it has been counted");
    }

    #[test]
    fn a_flood_does_not_push_out_the_knocks_of_others() {
        let mut heard = Heard::default();
        let group_of = |nth: u32| [KeyGroup::Devices, KeyGroup::Crowds][nth as usize % 2];
        assert_eq!(
            heard.hear(&KNOCK, KeyGroup::Devices, at(1, 1), Duration::ZERO, || true),
            Hearing::Genuine
        );
        for nth in 0..5 * KNOCKS as u32 {
            let mut knock = [9; KNOCK_LEN];
            knock[..4].copy_from_slice(&nth.to_be_bytes());
            // Attempts of devices are over the limit each time; those of crowds are not counted.
            let may_try = group_of(nth) == KeyGroup::Crowds;
            heard.hear(&knock, group_of(nth), at(3, 1), Duration::ZERO, || may_try);
        }
        assert_eq!(
            heard.hear(&KNOCK, KeyGroup::Devices, at(2, 1), Duration::ZERO, || true),
            Hearing::Replayed
        );
    }

    fn long(first: u8, destination: &[u8], source: &[u8]) -> Vec<u8> {
        let mut packet = vec![first, 0, 0, 0, 1, destination.len() as u8];
        packet.extend_from_slice(destination);
        packet.push(source.len() as u8);
        packet.extend_from_slice(source);
        packet
    }

    #[test]
    fn a_chosen_connection_id_is_accepted_from_its_client_and_for_a_short_time() {
        let mut issued = IssuedIds::default();
        let (id, now) = ([5; 8], Duration::from_secs(100));
        assert!(!issued.knows(&id, at(1, 1), now));
        issued.sent(&long(0xf0, &[1, 2, 3, 4], &id), at(1, 1), now);
        for (from, later, known) in [
            (at(1, 1), 0, true),
            (at(1, 1), 13, true),
            (at(1, 1), 14, false),
            (at(2, 1), 0, false),
            (at(1, 2), 0, false),
        ] {
            let when = now + Duration::from_secs(later);
            assert_eq!(issued.knows(&id, from, when), known, "{from} {later}");
        }
        issued.sent(&long(0xc0, &[1, 2, 3, 4], &id), at(1, 1), now * 2);
        assert!(issued.knows(&id, at(1, 1), now * 2), "said again");
    }

    #[test]
    fn ids_are_read_from_whole_headers_only() {
        let packet = long(0xc0, &[1; 20], &[2; 8]);
        assert_eq!(destination_id(&packet), Some(&[1; 20][..]));
        assert_eq!(source_id(&packet), Some(&[2; 8][..]));
        for cut in 0..packet.len() {
            assert_eq!(source_id(&packet[..cut]), None, "cut at {cut}");
        }
    }
}
