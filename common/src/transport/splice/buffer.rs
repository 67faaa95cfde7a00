//! Buffers for reading from TCP, taken from a pool. An idle connection holds none.

use std::sync::Mutex;

/// The most bytes that are read from TCP at once.
pub(super) const BUFFER: usize = 64 * 1024;
/// The most buffers in the pool.
const POOLED: usize = 32;

/// A buffer. Dropping it returns it to the pool.
pub struct Buffer(pub(super) Vec<u8>);

static POOL: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

impl Buffer {
    /// A buffer from the pool, with arbitrary contents.
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
