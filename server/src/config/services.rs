//! The services of the file: `upstream`, `upstream_allow` and the tables `[services.NAME]`.

use std::{collections::BTreeMap, net::SocketAddr};

use proto::identity::Name;
use serde::Deserialize;
use toml::Spanned;

use crate::policy::{
    roles::{RoleFile, default_service},
    upstream::{Kind, Upstream, UpstreamAllow, UpstreamError, WrittenUpstream},
};

/// A table `[services.NAME]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ServiceFile {
    upstream: Spanned<WrittenUpstream>,
    /// What it speaks, if the upstream does not say it.
    kind: Option<Kind>,
}

/// The services as the file has them.
pub(super) struct WrittenServices<'a> {
    pub(super) upstream: Option<Spanned<WrittenUpstream>>,
    pub(super) allow: Vec<SocketAddr>,
    pub(super) tables: BTreeMap<Name, ServiceFile>,
    pub(super) roles: &'a BTreeMap<Name, RoleFile>,
}

/// The services that the file names, checked.
#[derive(Debug, Clone, Default)]
pub(super) struct FileServices {
    pub(super) allow: UpstreamAllow,
    /// The service `ollama`, if the file names one.
    pub(super) default: Option<Upstream>,
    pub(super) others: Vec<(Name, Upstream)>,
}

/// What is wrong in the file, and where.
#[derive(Debug)]
pub(super) struct WrongService {
    pub(super) at: usize,
    pub(super) why: String,
    pub(super) cure: Option<String>,
}

/// Checks the services of the file.
///
/// # Errors
/// If an upstream may not be dialled, the service `ollama` is named twice, or a role names a service
/// that there is not.
pub(super) fn settle(file: WrittenServices<'_>) -> Result<FileServices, WrongService> {
    let allow: UpstreamAllow = file.allow.into_iter().collect();
    let mut settled = FileServices { allow, ..FileServices::default() };
    if let Some(upstream) = file.upstream {
        settled.default = Some(admit(&settled.allow, upstream, None)?);
    }
    for (name, ServiceFile { upstream, kind }) in file.tables {
        let at = upstream.span().start;
        let admitted = admit(&settled.allow, upstream, kind)?;
        if name != default_service() {
            settled.others.push((name, admitted));
        } else if settled.default.replace(admitted).is_some() {
            return Err(WrongService {
                at,
                why: format!("`upstream` is the service `{name}`, and so is `[services.{name}]`"),
                cure: Some("keep one of them".to_owned()),
            });
        }
    }
    for (role, table) in file.roles {
        let Some(named) = &table.services else { continue };
        let is_known = |name: &Name| {
            *name == default_service() || settled.others.iter().any(|(known, _)| known == name)
        };
        if let Some(unknown) = named.get_ref().iter().find(|name| !is_known(name)) {
            let names = settled.others.iter().map(|(name, _)| format!(", `{name}`"));
            return Err(WrongService {
                at: named.span().start,
                why: format!(
                    "the role `{role}` names the service `{unknown}`, which there is not; there is `{}`{}",
                    default_service(),
                    names.collect::<String>()
                ),
                cure: Some(format!(
                    "add it: [services.{unknown}] with its `upstream`, or take it out of the role"
                )),
            });
        }
    }
    Ok(settled)
}

fn admit(
    allow: &UpstreamAllow,
    written: Spanned<WrittenUpstream>,
    kind: Option<Kind>,
) -> Result<Upstream, WrongService> {
    let at = written.span().start;
    let written = written.into_inner();
    let written = match kind {
        Some(kind) => written.of_kind(kind),
        None => written,
    };
    allow.admit(written).map_err(|e: UpstreamError| WrongService {
        at,
        why: e.to_string(),
        cure: e.cure(),
    })
}
