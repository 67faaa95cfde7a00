//! Checks of what strangers and peers send besides HTTP: knocks, codes, messages, failures and
//! certificates.

use serde::{Serialize, de::DeserializeOwned};

use bytes::Bytes;

use crate::{
    copies::{Ahead, StreamCopy},
    crypto::sha256,
    doctor::{DoctorAnswer, DoctorRequest, Report, text::Style},
    failure::Failure,
    human,
    identity::{CLOCK_SLACK, Certificate, DeviceId, KeyHash, Name, NotACertificate},
    invitation::{Invitation, MAX_ADDRESSES, MAX_CODE_LEN, PREFIX, is_address},
    knock::{DeviceKnocks, KNOCK_LEN, KnockKey, SharedKey},
    wire::{
        Code, EnrollAnswer, EnrollDevice, EnrollRequest, Enrolled, Greeting, Hello, MAX_LEN,
        Notice, RenewAnswer, Service, SshFailed, StreamHead,
    },
};

/// A code is read as it is written. The bytes are taken as a code, and as the contents of a code
/// before its checksum.
pub fn invitation(bytes: &[u8]) {
    code(&String::from_utf8_lossy(bytes));
    let whole = [bytes, &sha256(bytes)[..4]].concat();
    code(&format!("{PREFIX}{}", data_encoding::BASE32_NOPAD.encode(&whole)));
}

fn code(text: &str) {
    let Ok(invitation) = text.parse::<Invitation>() else { return };
    assert!((1..=MAX_ADDRESSES).contains(&invitation.addresses.len()));
    assert!(invitation.addresses.iter().all(|address| is_address(address)));
    let code = invitation.code();
    assert!(code.len() <= MAX_CODE_LEN);
    assert_eq!(code.parse::<Invitation>().as_ref(), Ok(&invitation));
    let quoted = format!("> \"{}\n> {}\"", &code[..9].to_ascii_uppercase(), &code[9..]);
    assert_eq!(quoted.parse::<Invitation>().as_ref(), Ok(&invitation));
    // The last byte of the checksum is within the last two characters.
    assert!(code[..code.len() - 2].parse::<Invitation>().is_err());
    let changed = if code.as_bytes()[20] == b'a' { "b" } else { "a" };
    assert!(format!("{}{changed}{}", &code[..20], &code[21..]).parse::<Invitation>().is_err());
}

/// The only device of the server that judges knocks here.
const DEVICE: u32 = 0xd7c4_91ae;

/// The judgement of a first packet's connection ID: a good one with any bit changed is not good any
/// more. The bytes are also read as a key.
pub fn knock(bytes: &[u8]) {
    let shared = SharedKey::from_bytes([7; 32]);
    let devices = DeviceKnocks::new(&SharedKey::from_bytes([9; 32]));
    let hash = KeyHash([5; 32]);
    let whose = |knock: &[u8]| {
        let mut asked = None;
        let found = devices.whose(knock, |id| {
            asked = Some(id);
            (u32::from(id) == DEVICE).then_some(hash)
        });
        assert_eq!(asked.is_some(), knock.len() == KNOCK_LEN);
        assert!(found.is_none() || found == asked);
        found
    };
    let is_good = |knock: &[u8]| shared.opens_for(knock) || whose(knock).is_some();
    if is_good(bytes) {
        for bit in 0..8 * bytes.len() {
            let mut changed = bytes.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_good(&changed), "bit {bit}");
        }
        assert!(!is_good(&bytes[1..]) && !is_good(&[bytes, b"x"].concat()));
        assert_eq!(devices.whose(bytes, |_| Some(KeyHash([6; 32]))), None);
    }
    if let Ok(key) = String::from_utf8_lossy(bytes).parse::<KnockKey>() {
        assert!(key.text().parse().as_ref() == Ok(&key));
        let knock = key.knock();
        assert!(match &key {
            KnockKey::Shared(key) => key.opens_for(&knock),
            KnockKey::Device(_) => knock.len() == KNOCK_LEN,
        });
    }
    assert_eq!(whose(&devices_knock(&devices, hash)).map(u32::from), Some(DEVICE));
}

fn devices_knock(devices: &DeviceKnocks, hash: KeyHash) -> [u8; KNOCK_LEN] {
    devices.of(DEVICE.into(), hash).knock()
}

/// Stream heads and messages: what was read can be written, and then read again.
pub fn wire(bytes: &[u8]) {
    stream_head(bytes);
    message::<Greeting>(bytes);
    message::<Hello>(bytes);
    message::<EnrollRequest>(bytes);
    message::<EnrollAnswer>(bytes);
    message::<Enrolled>(bytes);
    message::<EnrollDevice>(bytes);
    message::<SshFailed>(bytes);
    message::<Notice>(bytes);
    message::<DoctorRequest>(bytes);
    message::<DoctorAnswer>(bytes);
    report(bytes);
    message::<RenewAnswer>(bytes);
    message::<Service>(bytes);
    if let Some(number) = bytes.first_chunk().map(|number| u64::from_be_bytes(*number))
        && let Some(code) = Code::from_number(number)
    {
        assert_eq!(u64::from(code as u32), number);
    }
    let text = String::from_utf8_lossy(bytes);
    if let Ok(id) = text.parse::<DeviceId>() {
        assert_eq!(id.to_string(), text);
    }
    if let Ok(name) = text.parse::<Name>() {
        assert!(name.as_str() == text && (1..=63).contains(&text.len()) && text.is_ascii());
    }
}

/// What the box says of itself is bounded, and no terminal obeys it.
fn report(bytes: &[u8]) {
    let Ok(report) = serde_json::from_slice::<Report>(bytes) else { return };
    let report = Report::new("1", report.lines_of_box());
    let text = report.to_text(Style::PLAIN, None);
    assert!(text.chars().all(|c| c == '\n' || !human::misleads(c)), "{text:?}");
}

fn stream_head(bytes: &[u8]) {
    let whole = StreamHead::decode(bytes);
    if let Ok(Some((head, len))) = &whole {
        assert!(*len <= StreamHead::MAX_LEN);
        assert_eq!(head.encode(), bytes[..*len], "it can be written in two ways");
    }
    let most = bytes.len().min(StreamHead::MAX_LEN);
    let first = (0..=most).map(|len| StreamHead::decode(&bytes[..len])).find(|v| *v != Ok(None));
    assert_eq!(first.unwrap_or(Ok(None)), whole, "the verdict changed when more came");
}

fn message<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    let Ok(message) = serde_json::from_slice::<T>(bytes) else { return };
    let written = serde_json::to_vec(&message).expect("a message can be written");
    let again: T = serde_json::from_slice(&written).expect("what is written can be read");
    assert_eq!(serde_json::to_vec(&again).ok(), Some(written));
}

/// The longest stream and the longest copy of which [`copies`] tells.
const STREAM: u64 = 1 << 13;
const PIECE: u64 = 300;

/// Copies of pieces of one stream: whatever comes, in which order and how often, its reader gets the
/// bytes of the stream in their order. The bytes are read as a frame, and as what happens: in four bytes
/// a copy arrives, or the reader takes bytes, or the stream brings some itself.
pub fn copies(bytes: &[u8]) {
    if let Some(copy) = StreamCopy::decode(Bytes::copy_from_slice(bytes)) {
        assert_eq!(copy.encode(), bytes);
        let mut ahead = Ahead::default();
        ahead.put(0, copy.offset, &copy.bytes);
        assert!(ahead.held() <= copy.bytes.len());
    }
    let at = |offset: u64| (offset ^ (offset >> 8)) as u8;
    let stream = |from: u64, len: u64| (from..from + len).map(at).collect::<Vec<u8>>();
    let (mut ahead, mut delivered) = (Ahead::default(), 0);
    for &[what, high, low, len] in bytes.as_chunks().0 {
        let number = u64::from(u16::from_be_bytes([high, low]));
        match what % 3 {
            0 => {
                let (offset, len) = (number % STREAM, u64::from(len) % PIECE + 1);
                ahead.put(delivered, offset, &stream(offset, len));
            }
            1 => {
                if let Some(taken) = ahead.take(delivered, usize::from(len) + 1) {
                    assert!((1..=usize::from(len) + 1).contains(&taken.len()));
                    assert_eq!(taken, stream(delivered, taken.len() as u64), "at {delivered}");
                    delivered += taken.len() as u64;
                }
            }
            _ => delivered += u64::from(len),
        }
        assert!(ahead.held() as u64 <= 64 * PIECE);
    }
    // Nothing is left for a reader who has everything.
    assert_eq!(ahead.take(STREAM + PIECE + delivered, 1), None);
    assert_eq!(ahead.held(), 0);
}

/// A failure that another program has sent is bounded, and is passed on as it came.
pub fn failure(bytes: &[u8]) {
    let Ok(failure) = serde_json::from_slice::<Failure>(bytes) else { return };
    let lines = [failure.causes(), failure.hints()];
    let text = lines.iter().flat_map(|lines| lines.iter()).map(String::len).sum::<usize>();
    assert!(failure.what().len() + text <= 8 * 1024);
    assert!(lines.iter().all(|lines| lines.len() <= 8));
    assert!(failure.to_string().starts_with(&format!("error: {}", failure.what())));
    let written = serde_json::to_vec(&failure).expect("a failure can be written");
    assert!(written.len() < MAX_LEN);
    assert_eq!(serde_json::from_slice::<Failure>(&written).ok(), Some(failure));
}

/// A certificate is read whole or not at all.
pub fn certificate(bytes: &[u8]) {
    let Ok(certificate) = Certificate::from_der(bytes) else { return };
    if let Some(device) = certificate.device {
        let uri = device.to_uri();
        assert!(bytes.windows(uri.len()).any(|at| at == uri.as_bytes()));
    }
    let issued = certificate.not_before + CLOCK_SLACK;
    if issued <= certificate.not_after {
        let (soon, late) = (certificate.renew_at(0.0), certificate.renew_at(1.0));
        assert!(issued <= soon && soon <= late && late <= certificate.not_after);
    }
    assert_eq!(Certificate::from_der(&[bytes, b"\0"].concat()), Err(NotACertificate));
    assert_eq!(Certificate::from_der(&bytes[..bytes.len() - 1]), Err(NotACertificate));
}
