//! The objects in a token: the private key, its public key, and a new pair.

use aws_lc_rs::rand;
use cryptoki::{
    mechanism::Mechanism,
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::Session,
};

use super::{
    super::{
        ecdsa::{P256, Point},
        error::KeyError,
    },
    Token,
};

/// The length of the id of a new key, in bytes.
const ID: usize = 16;

/// The attributes of the URI that an object has to have.
fn wanted(token: &Token, class: ObjectClass) -> Vec<Attribute> {
    let label = token.uri.object.as_ref().map(|label| Attribute::Label(label.clone().into()));
    let id = token.uri.id.clone().map(Attribute::Id);
    [Attribute::Class(class), Attribute::KeyType(KeyType::EC)]
        .into_iter()
        .chain(label)
        .chain(id)
        .collect()
}

/// The private key of the URI, if the token has one.
pub(super) fn private(token: &Token, session: &Session) -> Result<Option<ObjectHandle>, KeyError> {
    let wanted = wanted(token, ObjectClass::PRIVATE_KEY);
    let found = session.find_objects(&wanted).map_err(|e| token.failed("be searched", &e))?;
    match *found.as_slice() {
        [] => Ok(None),
        [key] => Ok(Some(key)),
        _ => Err(token.lasting(
            &format!("it has several keys {}", token.uri.key_name()),
            "name one in the URI of `--key`, by its label or its id: `object=LABEL;id=%01`",
        )),
    }
}

/// Whether the session and the key are still good.
pub(super) fn is_there(token: &Token, session: &Session, key: ObjectHandle) -> bool {
    matches!(private(token, session), Ok(Some(found)) if found == key)
}

/// Makes a pair of keys that never leaves the token.
pub(super) fn make(token: &Token, session: &Session) -> Result<(), KeyError> {
    let label = || token.uri.object.clone().unwrap_or_else(|| "adit".to_owned()).into_bytes();
    let id = match &token.uri.id {
        Some(id) => id.clone(),
        None => {
            let mut id = vec![0; ID];
            rand::fill(&mut id).map_err(|e| KeyError::unusable(&e))?;
            id
        }
    };
    let public = [
        Attribute::Token(true),
        Attribute::Private(false),
        Attribute::Verify(true),
        Attribute::EcParams(P256.to_vec()),
        Attribute::Label(label()),
        Attribute::Id(id.clone()),
    ];
    let private = [
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Sign(true),
        Attribute::Label(label()),
        Attribute::Id(id),
    ];
    let made = session.generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private);
    made.map(drop).map_err(|e| token.failed("make a P-256 key", &e))
}

/// Refuses a key that may leave the token, and one for which a PIN is needed at each signature.
pub(super) fn refuse_copyable(
    token: &Token,
    session: &Session,
    key: ObjectHandle,
) -> Result<(), KeyError> {
    // Asked for one by one: tokens without one of them answer the others.
    let has = |kind: AttributeType, is: fn(&Attribute) -> bool| {
        let found = session.get_attributes(key, &[kind]).unwrap_or_default();
        found.iter().any(is)
    };
    let copyable = has(AttributeType::Extractable, |a| matches!(a, Attribute::Extractable(true)))
        || has(AttributeType::Sensitive, |a| matches!(a, Attribute::Sensitive(false)));
    let name = token.uri.key_name();
    if copyable {
        return Err(token.lasting(
            &format!("its key {name} can be copied out of it"),
            "choose another label, under which adit makes a key that cannot: `object=LABEL` in the URI of `--key`",
        ));
    }
    if has(AttributeType::AlwaysAuthenticate, |a| matches!(a, Attribute::AlwaysAuthenticate(true)))
    {
        return Err(token.lasting(
            &format!("it wants its PIN at each use of its key {name}, and a tunnel connects by itself"),
            "choose another key: `object=LABEL` in the URI of `--key` (of a PIV card the one in slot 9a)",
        ));
    }
    Ok(())
}

/// The public key of a private key.
pub(super) fn point(
    token: &Token,
    session: &Session,
    key: ObjectHandle,
) -> Result<Point, KeyError> {
    let attribute = |object, kind| {
        session.get_attributes(object, &[kind]).ok().and_then(|found| found.into_iter().next())
    };
    let id = match attribute(key, AttributeType::Id) {
        Some(Attribute::Id(id)) if !id.is_empty() => Some(Attribute::Id(id)),
        _ => token.uri.object.as_ref().map(|label| Attribute::Label(label.clone().into())),
    };
    let by: Vec<_> = [Attribute::Class(ObjectClass::PUBLIC_KEY)].into_iter().chain(id).collect();
    let public = session.find_objects(&by).map_err(|e| token.failed("be searched", &e))?;
    // Some tokens have the point at the private key.
    for object in public.into_iter().chain([key]) {
        if let Some(Attribute::EcParams(params)) = attribute(object, AttributeType::EcParams)
            && params != P256
        {
            break;
        }
        if let Some(Attribute::EcPoint(bytes)) = attribute(object, AttributeType::EcPoint)
            && let Some(point) = Point::from_attribute(&bytes)
        {
            return Ok(point);
        }
    }
    Err(token.lasting(
        &format!("it shows no public key of P-256 beside its key {}", token.uri.key_name()),
        "choose a label under which there is no key yet: adit makes one there (`object=LABEL` in the URI of `--key`)",
    ))
}
