//! Answers the requests of other commands on this machine.

use std::sync::Arc;

use common::machine::control::Control;

use super::api::Api;
use crate::{
    doctor,
    running::{Answer, Request, Server},
    serve::reload::Reloaded,
    session::enrollment::{self, Claim, EnrollingKey},
    state::register::User,
};

/// Answers commands on this machine, until another process does.
pub(super) async fn answer_control(control: Arc<Control>, server: Arc<Server>) {
    let replaced = server.replaced.clone();
    let api = Arc::new(Api::new(server.clone()));
    let answer = move |request| {
        let server = server.clone();
        async move {
            match request {
                Request::Status => Answer::Status(Box::new(server.status())),
                Request::Tokens { device } => Answer::Tokens(server.tokens_today(device)),
                Request::Reload { named } => match server.reload(named.as_deref()).await {
                    Ok(Reloaded { file, later, remarks }) => Answer::Reloaded {
                        file,
                        later: later.into_iter().map(str::to_owned).collect(),
                        remarks,
                    },
                    Err(failure) => Answer::Failed(failure),
                },
                Request::Enroll { name, csr, key_storage, uid } => {
                    let claim = Claim::User { user: User { uid, is_owner: true }, name };
                    let key = EnrollingKey { csr: &csr, storage: key_storage };
                    match enrollment::enroll(&server, claim, key).await {
                        Ok(enrolled) => Answer::Enrolled(Box::new(enrolled)),
                        Err(why) => Answer::Failed(why.into()),
                    }
                }
                Request::Replace { program } => {
                    Answer::Replacement(server.replacements.order(program))
                }
                Request::Replacement => Answer::Replacement(server.replacements.state()),
                Request::Charged { tokens } => {
                    server.accounting.add(&tokens);
                    Answer::Charged
                }
                Request::Doctor => Answer::Doctor(Box::new(doctor::of_running(&server).await)),
                Request::InForce => Answer::InForce(server.in_force()),
                Request::Refresh => match server.refresh_for_command().await {
                    Ok(cut) => Answer::Refreshed { cut },
                    Err(e) => Answer::Failed(e.into()),
                },
            }
        }
    };
    let api = move |stream| {
        let api = api.clone();
        async move { api.serve(stream).await }
    };
    control.serve_until(answer, api, &replaced).await;
    // None of the parts of the server ends by itself.
    std::future::pending().await
}
