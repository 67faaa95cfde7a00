//! `aditd key …`: keys for applications that cannot run `adit`.

mod shown;

use std::time::Duration;

use clap::Subcommand;
use common::machine::{
    format::to_json,
    process::{self, parse_time, unix_now},
    report::{Exit, Failure, data, say, typed},
};
use proto::{
    api_key::ApiKey,
    human,
    identity::{Name, UserName},
    ollama::model::ModelPattern,
};

use serde_json::json;

use self::shown::{Listing, list, shown, until};
use crate::{
    audit::{self, AuditSettings, Event},
    commands::{
        beside::Beside,
        devices::{in_force, not_cut},
        models,
    },
    policy::roles,
    state::{
        State,
        register::{Key, KeyError, NewKey},
    },
};

/// The longest time after which a secret may end.
const LONGEST: Duration = Duration::from_secs(3650 * 86_400);

/// What can be done to keys.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a key and print it: the only time that it is shown
    Create {
        /// Name the key: whose it is, or what uses it
        name: Name,
        /// Give the key this role: infer, models, admin, or a role of your configuration
        #[arg(long, value_name = "ROLE", default_value = roles::DEFAULT)]
        role: Name,
        /// Let it use only these models, for example `llama3.2:1b` or `llama3*`, with commas between
        #[arg(long, value_name = "MODEL", value_delimiter = ',')]
        models: Option<Vec<ModelPattern>>,
        /// Let it end after this time, for example 90d [default: never]
        #[arg(long, value_name = "TIME", value_parser = parse_time)]
        expires: Option<Duration>,
        /// Say whose it is: what one user's devices and keys ask for is counted together
        #[arg(long, value_name = "USER")]
        user: Option<UserName>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List all keys
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Give a key another role: infer, models, admin, or a role of your configuration
    Role {
        /// The key's name or id
        key: String,
        /// The role
        role: Name,
    },
    /// Let a key use only these models; without any, show which it may use. The limits of its role
    /// still apply
    Models {
        /// The key's name or id
        key: String,
        /// Models, for example `llama3.2:1b` or `llama3*`
        #[arg(conflicts_with = "all", value_name = "MODEL")]
        models: Vec<ModelPattern>,
        /// Let the key use all models that its role allows
        #[arg(long)]
        all: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Say whose a key is
    User {
        /// The key's name or id
        key: String,
        /// The user's name, for example `alice`
        #[arg(required_unless_present = "none", conflicts_with = "none")]
        user: Option<UserName>,
        /// Let it count as a user of its own
        #[arg(long)]
        none: bool,
    },
    /// Print a new secret for a key; the old one still works for a while
    Rotate {
        /// The key's name or id
        key: String,
        /// Let the old secret work for this long; 0s ends it, and what it runs, at once
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = parse_time)]
        overlap: Duration,
        /// Let the new secret end after this time [default: as long as the old one]
        #[arg(long, value_name = "TIME", value_parser = parse_time)]
        expires: Option<Duration>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// End a key and its running answers, at once
    Revoke {
        /// The key's name or id
        key: String,
    },
}

/// Runs one command.
pub(crate) async fn run(beside: &Beside, command: Command) -> Result<(), Failure> {
    let (dir, audit) = (&*beside.dir, beside.audit());
    let state = match (State::open(dir), &command) {
        (Err(failure), Command::Revoke { .. }) => return Err(not_cut(failure)),
        (state, _) => state?,
    };
    match command {
        Command::Create { name, role, models, expires, user, json } => {
            beside.must_know(&role)?;
            let expires = ends_at(expires)?;
            let new = NewKey { name, role, models, user, expires };
            create(&state, audit, &new, json).await?;
            if let Some(note) = beside.https_note() {
                say(typed(note));
            }
            Ok(())
        }
        Command::List { json } => {
            let keys = shown(state.register.keys()?, beside);
            if json { data(to_json(&Listing { schema: 1, keys })?) } else { list(&keys) }
        }
        Command::Role { key, role } => {
            beside.must_know(&role)?;
            let key = valid(&state, &key)?;
            state.register.set_key_role(key.id, &role)?;
            audit::note_or_say(
                audit,
                &Event::Role {
                    device: key.subject(),
                    role: role.clone(),
                    before: key.role.clone(),
                    uid: process::uid(),
                },
            );
            in_force(&state).await?;
            say(format!("Key {} {} has the role `{role}` now.", key.name, key.id));
            Ok(())
        }
        Command::Models { key, models, all: false, json } if models.is_empty() => {
            let key = state.register.find_key(&key)?;
            if json {
                let models = key.models;
                return data(to_json(&json!({"schema": 1, "models": models}))?);
            }
            data(models::listed(key.models.as_deref(), &key.role))
        }
        Command::Models { key, models, all, json: _ } => {
            let key = valid(&state, &key)?;
            state.register.set_key_models(key.id, (!all).then_some(models.as_slice()))?;
            let named = (!all).then(|| models.iter().map(ToString::to_string).collect());
            let event = Event::Models { device: key.subject(), models: named, uid: process::uid() };
            audit::note_or_say(audit, &event);
            in_force(&state).await?;
            say(format!("Key {} {} may now {}.", key.name, key.id, models::allowed(&models, all)));
            if let Some(note) = models::missing(dir, &models).await {
                say(note);
            }
            Ok(())
        }
        Command::User { key, user, none: _ } => assign(&state, audit, &key, user.as_ref()).await,
        Command::Rotate { key, overlap, expires, json } => {
            rotate(&state, audit, &key, overlap, expires, json).await
        }
        Command::Revoke { key } => revoke(&state, audit, &key).await,
    }
}

/// Finds a key that can be changed.
fn valid(state: &State, name: &str) -> Result<Key, KeyError> {
    let key = state.register.find_key(name)?;
    if key.revoked.is_some() { Err(KeyError::AlreadyRevoked(key.name)) } else { Ok(key) }
}

fn ends_at(life: Option<Duration>) -> Result<Option<i64>, Failure> {
    let Some(life) = life else { return Ok(None) };
    if life.is_zero() || life > LONGEST {
        return Err(Failure::new("a key ends after one second to ten years")
            .hint("for example `--expires 90d`; without it the key has no end")
            .exit(Exit::Usage));
    }
    Ok(Some(unix_now().saturating_add(life.as_secs().max(1) as i64)))
}

/// Says whose a key is; `None` for a user of its own.
async fn assign(
    state: &State,
    audit: &AuditSettings,
    name: &str,
    user: Option<&UserName>,
) -> Result<(), Failure> {
    let key = valid(state, name)?;
    if let Some(user) = user {
        state.register.must_not_be_revoked(user)?;
    }
    state.register.set_key_user(key.id, user)?;
    let now = Key { user: user.cloned(), ..key.clone() };
    let event = Event::Assign { device: now.subject(), before: key.user, uid: process::uid() };
    audit::note_or_say(audit, &event);
    in_force(state).await?;
    say(match user {
        Some(user) => format!("The key {} {} belongs to the user `{user}` now.", now.name, now.id),
        None => format!("The key {} {} counts as a user of its own now.", now.name, now.id),
    });
    Ok(())
}

/// Prints a secret, the only time that it is shown.
fn print_secret(
    key: &Key,
    secret: &ApiKey,
    expires: Option<i64>,
    as_json: bool,
) -> Result<(), Failure> {
    if !as_json {
        return data(secret.reveal());
    }
    data(to_json(&json!({
        "schema": 1,
        "name": key.name,
        "id": key.id,
        "secret": secret.reveal(),
        "expires": expires,
    }))?)
}

async fn create(
    state: &State,
    audit: &AuditSettings,
    new: &NewKey,
    as_json: bool,
) -> Result<(), Failure> {
    state.authorities.get().check_clock(unix_now())?;
    let secret = ApiKey::generate();
    let key = state.register.create_key(new, &secret, unix_now())?;
    audit::note_or_say(
        audit,
        &Event::KeyCreate {
            key: key.subject(),
            role: key.role.clone(),
            prefix: secret.prefix().to_string(),
            expires: new.expires,
            uid: process::uid(),
        },
    );
    in_force(state).await?;
    print_secret(&key, &secret, new.expires, as_json)?;
    say(format!(
        "This is the key `{}` (role `{}`, {}). It is not shown again.",
        key.name,
        key.role,
        until(new.expires)
    ));
    Ok(())
}

async fn rotate(
    state: &State,
    audit: &AuditSettings,
    name: &str,
    overlap: Duration,
    expires: Option<Duration>,
    as_json: bool,
) -> Result<(), Failure> {
    if overlap > LONGEST {
        return Err(Failure::new("the old secret works for ten years at the most")
            .hint("for example `--overlap 24h`")
            .exit(Exit::Usage));
    }
    state.authorities.get().check_clock(unix_now())?;
    let key = valid(state, name)?;
    let now = unix_now();
    let before = key.secrets.first();
    let life = before.and_then(|secret| Some(secret.expires? - secret.created));
    let expires = match expires {
        Some(life) => ends_at(Some(life))?,
        None => life.map(|life| now.saturating_add(life)),
    };
    let secret = ApiKey::generate();
    let old_ends = now.saturating_add(overlap.as_secs() as i64);
    state.register.rotate_key(key.id, &secret, expires, old_ends, now)?;
    audit::note_or_say(
        audit,
        &Event::KeyRotate {
            key: key.subject(),
            prefix: secret.prefix().to_string(),
            expires,
            overlap: overlap.as_secs(),
            uid: process::uid(),
        },
    );
    in_force(state).await?;
    print_secret(&key, &secret, expires, as_json)?;
    let old = match overlap.as_secs() {
        0 => "The old secret has ended.".to_owned(),
        _ => format!("The old secret works for {} more.", human::time(overlap)),
    };
    say(format!(
        "This is the new secret of the key `{}` ({}). It is not shown again. {old}",
        key.name,
        until(expires)
    ));
    Ok(())
}

async fn revoke(state: &State, audit: &AuditSettings, name: &str) -> Result<(), Failure> {
    let key = match state.register.find_key(name) {
        Err(KeyError::Register(e)) => return Err(not_cut(e)),
        found => found?,
    };
    if key.revoked.is_some() {
        return Err(KeyError::AlreadyRevoked(key.name).into());
    }
    state.register.revoke_key(key.id, unix_now()).map_err(not_cut)?;
    let event = Event::Revoke { device: key.subject(), reason: None, uid: process::uid() };
    audit::note_or_say(audit, &event);
    in_force(state).await?;
    say(format!("Revoked the key {} {}; its running answers were cut.", key.name, key.id));
    Ok(())
}
