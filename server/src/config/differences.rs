//! What a change of the configuration takes: in force at once, or at the next start.

use super::Config;

impl Config {
    /// The names of the settings that differ, without those that are in force at once.
    pub fn differences(&self, other: &Self) -> Vec<&'static str> {
        let (audit, other_audit) = (&self.accounting.audit, &other.accounting.audit);
        let all = [
            ("state_dir", self.state_dir == other.state_dir),
            ("listen", self.listen == other.listen),
            ("allow_from", self.audience == other.audience),
            ("upstream", self.upstream() == other.upstream()),
            ("services", self.services == other.services),
            ("device_life", self.device_life == other.device_life),
            ("idle_timeout", self.idle_timeout == other.idle_timeout),
            ("https", self.https.is_some() == other.https.is_some()),
            ("tcp_relay", self.tcp_relay == other.tcp_relay),
            ("enroll_group", self.enroll_group == other.enroll_group),
            ("enroll_socket", self.enroll_socket == other.enroll_socket),
            ("advertise", self.advertise == other.advertise),
            ("audit_dir", audit.dir == other_audit.dir),
            ("audit_required", audit.required == other_audit.required),
            ("audit_size", audit.size == other_audit.size),
            ("audit_keep", audit.keep == other_audit.keep),
            ("sandbox", self.sandbox == other.sandbox),
            ("metrics", self.accounting.metrics == other.accounting.metrics),
        ];
        let of_https = self.https.iter().zip(&other.https).flat_map(|(now, next)| now.later(next));
        all.into_iter().filter(|(_, same)| !same).map(|(name, _)| name).chain(of_https).collect()
    }
}
