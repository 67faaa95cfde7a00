//! The calls of the API and their paths, without IO.

use hyper::Method;

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Index,
    Status,
    Roles,
    Reload,
    Ca,
    CaRotate,
    CaRetire,
    Invitations,
    Invite,
    Withdraw,
    Devices,
    Device,
    DeviceRole,
    DeviceModels,
    DeviceUser,
    DeviceRename,
    DeviceRevoke,
    DeviceRestore,
    DeviceConfirm,
    DeviceForget,
    Keys,
    KeyCreate,
    Key,
    KeyRole,
    KeyModels,
    KeyUser,
    KeyRotate,
    KeyRevoke,
    Users,
    User,
    UserRole,
    UserRevoke,
    UserRestore,
    Requests,
    Audit,
    Events,
}

/// Every call: its method, its path (`{}` stands for a name or id), and what it does.
pub(super) const CALLS: [(&str, &str, Call, &str); 36] = [
    ("GET", "/v1", Call::Index, "this list"),
    ("GET", "/v1/status", Call::Status, "the running server"),
    ("GET", "/v1/roles", Call::Roles, "the names of all roles"),
    ("POST", "/v1/reload", Call::Reload, "reads the configuration again"),
    ("GET", "/v1/ca", Call::Ca, "the certificate authorities, and who lacks the newest"),
    ("POST", "/v1/ca/rotate", Call::CaRotate, "makes a new certificate authority"),
    ("POST", "/v1/ca/retire", Call::CaRetire, "ends the old ones"),
    ("GET", "/v1/invitations", Call::Invitations, "the open invitations"),
    ("POST", "/v1/invitations", Call::Invite, "invites a device"),
    ("DELETE", "/v1/invitations/{}", Call::Withdraw, "withdraws an invitation"),
    ("GET", "/v1/devices", Call::Devices, "all devices"),
    ("GET", "/v1/devices/{}", Call::Device, "one device"),
    ("POST", "/v1/devices/{}/role", Call::DeviceRole, "gives it another role"),
    ("POST", "/v1/devices/{}/models", Call::DeviceModels, "sets the models that it may use"),
    ("POST", "/v1/devices/{}/user", Call::DeviceUser, "says to which user it belongs"),
    ("POST", "/v1/devices/{}/rename", Call::DeviceRename, "gives it another name"),
    ("POST", "/v1/devices/{}/revoke", Call::DeviceRevoke, "ends its access, at once"),
    ("POST", "/v1/devices/{}/restore", Call::DeviceRestore, "lets it in again"),
    ("POST", "/v1/devices/{}/confirm", Call::DeviceConfirm, "lets it in after a restored backup"),
    ("DELETE", "/v1/devices/{}", Call::DeviceForget, "removes a revoked device"),
    ("GET", "/v1/keys", Call::Keys, "all keys"),
    ("POST", "/v1/keys", Call::KeyCreate, "makes a key"),
    ("GET", "/v1/keys/{}", Call::Key, "one key"),
    ("POST", "/v1/keys/{}/role", Call::KeyRole, "gives it another role"),
    ("POST", "/v1/keys/{}/models", Call::KeyModels, "sets the models that it may use"),
    ("POST", "/v1/keys/{}/user", Call::KeyUser, "says to which user it belongs"),
    ("POST", "/v1/keys/{}/rotate", Call::KeyRotate, "gives it a new secret"),
    ("POST", "/v1/keys/{}/revoke", Call::KeyRevoke, "ends it, at once"),
    ("GET", "/v1/users", Call::Users, "all users"),
    ("GET", "/v1/users/{}", Call::User, "one user"),
    (
        "POST",
        "/v1/users/{}/role",
        Call::UserRole,
        "gives all devices and keys of a user another role",
    ),
    ("POST", "/v1/users/{}/revoke", Call::UserRevoke, "ends the access of a user, at once"),
    ("POST", "/v1/users/{}/restore", Call::UserRestore, "lets a user in again"),
    ("GET", "/v1/requests", Call::Requests, "the requests that run"),
    ("GET", "/v1/audit", Call::Audit, "the last lines of the audit log"),
    ("GET", "/v1/events", Call::Events, "what happens, as it happens"),
];

/// Why there is no such call.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoCall {
    /// No call has this path.
    Path,
    /// Calls with this path have these methods.
    Method(String),
}

/// The call with this method and path, and the name in its path.
pub(super) fn call<'p>(method: &Method, path: &'p str) -> Result<(Call, &'p str), NoCall> {
    let mut methods = Vec::new();
    for (its_method, pattern, call, _) in CALLS {
        let Some(name) = matches(pattern, path) else { continue };
        if its_method == method.as_str() {
            return Ok((call, name));
        }
        methods.push(its_method);
    }
    if methods.is_empty() { Err(NoCall::Path) } else { Err(NoCall::Method(methods.join(", "))) }
}

/// What stands for `{}` in a path of this pattern.
fn matches<'p>(pattern: &str, path: &'p str) -> Option<&'p str> {
    let Some((before, after)) = pattern.split_once("{}") else {
        return (pattern == path).then_some("");
    };
    let name = path.strip_prefix(before)?.strip_suffix(after)?;
    (!name.is_empty() && !name.contains('/')).then_some(name)
}

/// The value of a parameter in a query.
pub(super) fn parameter<'q>(query: Option<&'q str>, name: &str) -> Option<&'q str> {
    let pairs = query?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.into_iter().find(|(own, _)| *own == name).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_and_a_method_are_a_call() {
        for (method, path, expected) in [
            ("GET", "/v1", Ok((Call::Index, ""))),
            ("GET", "/v1/devices", Ok((Call::Devices, ""))),
            ("GET", "/v1/devices/laptop", Ok((Call::Device, "laptop"))),
            ("POST", "/v1/devices/laptop/revoke", Ok((Call::DeviceRevoke, "laptop"))),
            ("DELETE", "/v1/devices/laptop", Ok((Call::DeviceForget, "laptop"))),
            ("POST", "/v1/keys/ci/rotate", Ok((Call::KeyRotate, "ci"))),
            ("GET", "/", Err(NoCall::Path)),
            ("GET", "/v2/devices", Err(NoCall::Path)),
            ("GET", "/v1/devices/", Err(NoCall::Path)),
            ("POST", "/v1/devices//revoke", Err(NoCall::Path)),
            ("POST", "/v1/devices/a/b/revoke", Err(NoCall::Path)),
            ("GET", "/v1/devices/a/revoke", Err(NoCall::Method("POST".into()))),
            ("PUT", "/v1/devices/a", Err(NoCall::Method("GET, DELETE".into()))),
        ] {
            let method = Method::from_bytes(method.as_bytes()).expect("a method");
            assert_eq!(call(&method, path), expected, "{method} {path}");
        }
    }

    #[test]
    fn each_call_is_found_by_its_own_line() {
        for (method, path, expected, _) in CALLS {
            let path = path.replace("{}", "a-name");
            let method = Method::from_bytes(method.as_bytes()).expect("a method");
            assert_eq!(call(&method, &path).expect("a call").0, expected, "{method} {path}");
        }
    }

    #[test]
    fn parameters_are_found_by_their_names() {
        for (query, expected) in [
            (None, None),
            (Some("last=5"), Some("5")),
            (Some("a=1&last=7&last=8"), Some("7")),
            (Some("last"), None),
        ] {
            assert_eq!(parameter(query, "last"), expected);
        }
    }
}
