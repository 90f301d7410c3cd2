//! A child process that holds the probes in our place.
//!
//! The kernel takes 0.1 s to detach one uprobe that is a perf event, and whoever closes the last fd of it waits for that,
//! a process that was killed no less than one that ends by itself. With two events for each function that is seconds in
//! which we could neither end nor be killed. So a child holds them. It ends when its socket to us does, however that
//! comes, and the probes go with it while we are long gone.

use std::{
    ffi::c_int,
    io::{self, Read as _},
    mem::{size_of, zeroed},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
};

/// Room beside a message for one fd.
type Control = [u64; 4];

/// Our side of the child. When it is dropped the child ends.
#[derive(Debug)]
pub struct Holder {
    socket: UnixStream,
}

impl Holder {
    /// Starts the child. It holds nothing of what we have open.
    ///
    /// # Errors
    /// The system's.
    pub fn start() -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        // SAFETY: the child only makes system calls, which it may even if we have other threads.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: the child's socket is open, and nothing else of the child's will be used again.
            0 => unsafe { hold(theirs.as_raw_fd()) },
            _ => Ok(Self { socket: ours }),
        }
    }

    /// Hands a fd over.
    ///
    /// # Errors
    /// When the child has ended, or can hold no more.
    pub fn take(&mut self, fd: &OwnedFd) -> io::Result<()> {
        let mut byte = 0u8;
        let mut data = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let mut control = Control::default();
        // SAFETY: plain data, for which zero is a value.
        let mut message: libc::msghdr = unsafe { zeroed() };
        message.msg_iov = &raw mut data;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        // SAFETY: `control` has room for one fd, and the alignment of a header.
        let sent = unsafe {
            message.msg_controllen = libc::CMSG_SPACE(size_of::<c_int>() as u32) as usize;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(size_of::<c_int>() as u32) as usize;
            libc::CMSG_DATA(header).cast::<c_int>().write_unaligned(fd.as_raw_fd());
            libc::sendmsg(self.socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL)
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        self.socket.read_exact(std::slice::from_mut(&mut byte))
    }

    /// Becomes readable when the child has ended before us: somebody has killed it.
    ///
    /// # Errors
    /// The system's.
    pub fn watch(&self) -> io::Result<OwnedFd> {
        self.socket.as_fd().try_clone_to_owned()
    }
}

/// The child: takes what comes until `socket` ends.
///
/// # Safety
/// `socket` is open, and this process was forked for nothing but this.
unsafe fn hold(socket: c_int) -> ! {
    // SAFETY: system calls with arguments that live.
    unsafe {
        // Ctrl-C is not for us: the probes stay until our parent has gone.
        libc::setsid();
        libc::prctl(libc::PR_SET_NAME, c"zmqtrace-probes".as_ptr());
        // Whoever reads our parent's output waits for its end.
        for [first, last] in [[0, socket as u32 - 1], [socket as u32 + 1, u32::MAX]] {
            libc::syscall(libc::SYS_close_range, first, last, 0);
        }
        let mut limit: libc::rlimit = zeroed();
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        loop {
            let mut byte = 0u8;
            let mut data = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
            let mut control = Control::default();
            let mut message: libc::msghdr = zeroed();
            message.msg_iov = &raw mut data;
            message.msg_iovlen = 1;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = size_of::<Control>();
            let received = libc::recvmsg(socket, &raw mut message, 0);
            let is_taken = received == 1 && message.msg_flags & libc::MSG_CTRUNC == 0;
            // The byte goes back, for the fd has come.
            if !is_taken || libc::send(socket, (&raw const byte).cast(), 1, libc::MSG_NOSIGNAL) != 1 {
                libc::_exit(0);
            }
        }
    }
}
