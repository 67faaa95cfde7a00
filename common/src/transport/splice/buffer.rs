//! What is read from TCP lies in buffers that are used again: an idle connection has none.

use std::sync::Mutex;

/// Read from TCP at once at the most, in bytes.
pub(super) const BUFFER: usize = 64 * 1024;
/// Buffers kept for reuse.
const POOLED: usize = 32;

/// A buffer that goes back to the pool when it is dropped.
pub struct Buffer(pub(super) Vec<u8>);

static POOL: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

impl Buffer {
    /// One from the pool; what is in it is of no meaning.
    pub fn take() -> Self {
        Self(POOL.lock().ok().and_then(|mut pool| pool.pop()).unwrap_or_else(|| vec![0; BUFFER]))
    }

    /// Its bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Ok(mut pool) = POOL.lock()
            && pool.len() < POOLED
        {
            pool.push(std::mem::take(&mut self.0));
        }
    }
}
