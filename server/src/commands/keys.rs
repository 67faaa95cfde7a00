//! `aditd key …`: keys for applications that cannot run `adit`.

mod shown;

use std::time::Duration;

use clap::Subcommand;
use common::machine::{
    json,
    process::{parse_time, unix_now},
    report::{Exit, Failure, data, say, typed},
};
use proto::{
    human,
    identity::{Name, UserName},
    ollama::model::ModelPattern,
};

use self::shown::{list, until};
use crate::{
    changes::{Changes, MadeKey},
    commands::{
        beside::Beside,
        devices::Models,
        in_force::{in_force, not_cut},
        models, status,
    },
    documents::{KeyWithSecret, Keys, OneKey, View},
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
    /// Show one key
    Show {
        /// The key's name or id
        key: String,
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
        /// Print JSON
        #[arg(long)]
        json: bool,
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
        /// Print JSON
        #[arg(long)]
        json: bool,
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
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs one command.
pub(crate) async fn run(beside: &Beside, command: Command) -> Result<(), Failure> {
    let state = match (State::open(&beside.dir), &command) {
        (Err(failure), Command::Revoke { .. }) => return Err(not_cut(failure)),
        (state, _) => state?,
    };
    let (changes, on) = (beside.changes(&state), Shows { beside, state: &state });
    match command {
        Command::Create { name, role, models, expires, user, json } => {
            beside.must_know(&role)?;
            let new = NewKey { name, role, models, user, expires: ends_at(expires)? };
            create(&on, &changes, &new, json).await?;
            if let Some(note) = beside.https_note() {
                say(typed(note));
            }
            Ok(())
        }
        Command::List { json } => {
            let view = on.view().await?;
            let keys = state.register.keys()?.into_iter().map(|key| view.key(key)).collect();
            if json { json::answer(Keys { keys }) } else { list(&keys, beside) }
        }
        Command::Show { key, json } => {
            let key = on.view().await?.key(state.register.find_key(&key)?);
            if json { json::answer(OneKey { key }) } else { shown::show(&key, beside) }
        }
        Command::Role { key, role, json } => {
            beside.must_know(&role)?;
            let key = changes.set_key_role(&key, &role)?;
            on.in_force(&key, json).await?;
            say(format!("Key {} {} has the role `{role}` now.", key.name, key.id));
            Ok(())
        }
        Command::Models { key, models, all: false, json } if models.is_empty() => {
            let key = state.register.find_key(&key)?;
            if json {
                return json::answer(Models { models: key.models });
            }
            data(models::listed(key.models.as_deref(), &key.role))
        }
        Command::Models { key, models, all, json } => {
            let key = changes.set_key_models(&key, (!all).then_some(models.as_slice()))?;
            on.in_force(&key, json).await?;
            say(format!("Key {} {} may now {}.", key.name, key.id, models::allowed(&models, all)));
            if let Some(note) = models::missing(&beside.dir, &models).await {
                say(note);
            }
            Ok(())
        }
        Command::User { key, user, none: _, json } => {
            let key = changes.assign_key(&key, user.as_ref())?;
            on.in_force(&key, json).await?;
            let (name, id) = (&key.name, key.id);
            say(match user {
                Some(user) => format!("The key {name} {id} belongs to the user `{user}` now."),
                None => format!("The key {name} {id} counts as a user of its own now."),
            });
            Ok(())
        }
        Command::Rotate { key, overlap, expires, json } => {
            rotate(&on, &changes, &key, (overlap, expires), json).await
        }
        Command::Revoke { key, json } => {
            let key = match changes.revoke_key(&key) {
                Err(KeyError::Register(e)) => return Err(not_cut(e)),
                revoked => revoked?,
            };
            on.in_force(&key, json).await?;
            say(format!("Revoked the key {} {}; its running answers were cut.", key.name, key.id));
            Ok(())
        }
    }
}

/// How keys are shown after a change.
struct Shows<'a> {
    beside: &'a Beside,
    state: &'a State,
}

impl Shows<'_> {
    async fn view(&self) -> Result<View, Failure> {
        Ok(View::new(&self.state.register, status::live(&self.beside.dir).await)?)
    }

    /// Makes the running server apply a change, and prints the key as it is then.
    async fn in_force(&self, key: &Key, json: bool) -> Result<(), Failure> {
        in_force(self.state).await?;
        if json {
            json::answer(OneKey { key: self.view().await?.key(key.clone()) })?;
        }
        Ok(())
    }

    /// The same for a new secret, which is printed with and without JSON.
    async fn made(&self, made: MadeKey, json: bool) -> Result<(), Failure> {
        let in_force = in_force(self.state).await;
        // It is not shown again: it has to be printed, whatever else fails now.
        if json {
            let view = self.view().await.unwrap_or_default();
            json::answer(KeyWithSecret::new(made, &view))?;
        } else {
            data(made.secret.reveal())?;
        }
        in_force?;
        Ok(())
    }
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

async fn create(
    on: &Shows<'_>,
    changes: &Changes<'_>,
    new: &NewKey,
    json: bool,
) -> Result<(), Failure> {
    on.state.authorities.get().check_clock(unix_now())?;
    let made = changes.create_key(new)?;
    let (name, role) = (made.key.name.clone(), made.key.role.clone());
    on.made(made, json).await?;
    say(format!(
        "This is the key `{name}` (role `{role}`, {}). It is not shown again.",
        until(new.expires)
    ));
    Ok(())
}

/// `times`: how long the old secret works, and the new one.
async fn rotate(
    on: &Shows<'_>,
    changes: &Changes<'_>,
    name: &str,
    times: (Duration, Option<Duration>),
    json: bool,
) -> Result<(), Failure> {
    let (overlap, expires) = times;
    if overlap > LONGEST {
        return Err(Failure::new("the old secret works for ten years at the most")
            .hint("for example `--overlap 24h`")
            .exit(Exit::Usage));
    }
    on.state.authorities.get().check_clock(unix_now())?;
    let made = changes.rotate_key(name, overlap, ends_at(expires)?)?;
    let (name, expires) = (made.key.name.clone(), made.expires);
    on.made(made, json).await?;
    let old = match overlap.as_secs() {
        0 => "The old secret has ended.".to_owned(),
        _ => format!("The old secret works for {} more.", human::time(overlap)),
    };
    say(format!(
        "This is the new secret of the key `{name}` ({}). It is not shown again. {old}",
        until(expires)
    ));
    Ok(())
}
