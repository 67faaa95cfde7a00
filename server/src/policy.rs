//! Who may do what. The only maker of permits: whatever needs permission takes one.

use std::sync::{Arc, PoisonError, RwLock};

use common::{
    identity::{Certificate, DeviceId, Name},
    wire::{Code, DEFAULT_SERVICE, Service},
};

use crate::{register::Snapshot, upstream::Upstream};

/// How long after its certificate's end a device may still prove its key to get a new one, in seconds: 90 days.
pub const RECOVER_WITHIN: i64 = 90 * 24 * 3600;

/// The rules in force: what the register says now, and the services there are.
pub struct Policy {
    snapshot: RwLock<Arc<Snapshot>>,
    service: Name,
    upstream: Upstream,
}

/// A device whose certificate and standing are good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// Its id.
    pub id: DeviceId,
    /// What it is called.
    pub name: Name,
}

/// Permission to reach one service, for one stream. Only [`Policy::permit`] makes one.
#[derive(Debug)]
pub struct Permit {
    upstream: Upstream,
}

impl Permit {
    /// What may be reached.
    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }
}

impl Policy {
    /// The rules for one service.
    pub fn new(snapshot: Snapshot, upstream: Upstream) -> Self {
        let service = DEFAULT_SERVICE.parse().expect("the default service's name is a name");
        Self { snapshot: RwLock::new(Arc::new(snapshot)), service, upstream }
    }

    /// What the register says now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts a newer look at the register in force.
    pub fn update(&self, snapshot: Snapshot) {
        *self.snapshot.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(snapshot);
    }

    /// What a device may use.
    pub fn services(&self) -> Vec<Service> {
        vec![self.upstream.as_service(self.service.clone())]
    }

    /// Whether the holder of this certificate, which TLS has verified, is in good standing.
    ///
    /// # Errors
    /// [`Code::Revoked`] for a device that was revoked or is not in the register.
    pub fn admit(&self, certificate: &Certificate) -> Result<Admitted, Code> {
        let id = certificate.device.ok_or(Code::Revoked)?;
        let snapshot = self.snapshot();
        let device = snapshot.admits(id, certificate.key).ok_or(Code::Revoked)?;
        Ok(Admitted { id, name: device.name.clone() })
    }

    /// Permission for one stream of a device to one service, asked anew for every stream.
    ///
    /// # Errors
    /// [`Code::Revoked`] or [`Code::UnknownService`].
    pub fn permit(&self, certificate: &Certificate, service: &Name) -> Result<Permit, Code> {
        self.admit(certificate)?;
        if *service != self.service {
            return Err(Code::UnknownService);
        }
        Ok(Permit { upstream: self.upstream })
    }
}
