//! Reads another process's memory without stopping it.

use std::io;

const PAGE_BYTES: usize = 4096;

/// Parts that one call reads at most: IOV_MAX of linux/uio.h (UIO_MAXIOV).
pub const MAX_PARTS: usize = 1024;

/// The memory of a process.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    pid: libc::pid_t,
}

impl Memory {
    /// Of process `pid`. Nothing is opened: a read after its end says `ESRCH`.
    pub const fn new(pid: u32) -> Self {
        Self { pid: pid as libc::pid_t }
    }

    /// Fills `buffer` from `address`, or fails: a partial read is a failure.
    ///
    /// # Errors
    /// `EFAULT` for memory that is not mapped, `ESRCH` when the process is gone, `EPERM` without
    /// CAP_SYS_PTRACE.
    pub fn read(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
        let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let remote = libc::iovec { iov_base: address as *mut _, iov_len: buffer.len() };
        // SAFETY: `local` is a live buffer of that length; the kernel checks the remote address.
        let read = unsafe { libc::process_vm_readv(self.pid, &raw const local, 1, &raw const remote, 1, 0) };
        match usize::try_from(read) {
            Ok(read) if read == buffer.len() => Ok(()),
            Ok(_) => Err(io::Error::from_raw_os_error(libc::EFAULT)),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }

    /// Whether there is none any more: a process that ends loses its memory before its fds and its entry in `/proc`.
    /// Kernel threads never have any.
    pub fn is_gone(&self) -> bool {
        self.read(0, &mut [0]).is_err_and(|error| error.raw_os_error() == Some(libc::ESRCH))
    }

    /// Fills `buffer` with parts of `len` bytes from as many addresses, none of which crosses a page, up to the
    /// first one that cannot be read, and returns how much that was. At most 1024 parts are read.
    pub fn read_scattered(&self, addresses: &[u64], len: usize, buffer: &mut [u8]) -> usize {
        let mut parts: Vec<libc::iovec> = Vec::with_capacity(MAX_PARTS.min(addresses.len()));
        for address in addresses.iter().take(MAX_PARTS.min(buffer.len() / len.max(1))) {
            // The kernel looks a page up for each part: those that lie side by side in one are read as one.
            match parts.last_mut() {
                Some(last)
                    if *address % PAGE_BYTES as u64 != 0 && last.iov_base as u64 + last.iov_len as u64 == *address =>
                {
                    last.iov_len += len;
                }
                _ => parts.push(libc::iovec { iov_base: *address as *mut _, iov_len: len }),
            }
        }
        self.read_parts(&parts, buffer)
    }

    /// Fills `buffer` from `address` up to the first page that cannot be read, and returns how much that was.
    pub fn read_some(&self, address: u64, buffer: &mut [u8]) -> usize {
        let mut pages = Vec::new();
        let mut offset = 0;
        while offset < buffer.len() && pages.len() < MAX_PARTS {
            let Some(start) = address.checked_add(offset as u64) else { break };
            let len = (PAGE_BYTES - start as usize % PAGE_BYTES).min(buffer.len() - offset);
            pages.push(libc::iovec { iov_base: start as *mut _, iov_len: len });
            offset += len;
        }
        self.read_parts(&pages, buffer)
    }

    /// Fills `buffer` from parts of pages, at most [`MAX_PARTS`], up to the first one that cannot be read or has no room.
    fn read_parts(&self, parts: &[libc::iovec], buffer: &mut [u8]) -> usize {
        let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let remote = (parts.as_ptr(), parts.len() as libc::c_ulong);
        // SAFETY: `local` is a live buffer of that length, beyond which nothing is written; the kernel checks the remote
        // addresses.
        let read = unsafe { libc::process_vm_readv(self.pid, &raw const local, 1, remote.0, remote.1, 0) };
        usize::try_from(read).unwrap_or(0)
    }

    /// The little-endian word at `address`.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_u64(&self, address: u64) -> io::Result<u64> {
        let mut word = [0; 8];
        self.read(address, &mut word)?;
        Ok(u64::from_le_bytes(word))
    }

    /// The little-endian half word at `address`.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_u32(&self, address: u64) -> io::Result<u32> {
        let mut word = [0; 4];
        self.read(address, &mut word)?;
        Ok(u32::from_le_bytes(word))
    }
}
