//! The one table of libzmq's functions, 4.1 to 4.3.5 with drafts: <https://libzmq.readthedocs.io> and
//! `include/zmq.h`, `src/zmq_draft.h` of the releases.
//!
//! Userspace reads it to find, name and decode calls. The kernel side needs only what fits in a probe's
//! [`Cookie`], so it carries no table of its own.

use Arg::*;
use Capture as Cap;
use Class as In;

/// Groups of functions, as `-e` selects them.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Contexts: new, set, shutdown, term.
    Ctx = 0,
    /// `zmq_socket`, `zmq_close`, monitors.
    Socket = 1,
    /// bind, connect, unbind, disconnect, join, leave.
    Endpoint = 2,
    /// `zmq_setsockopt`.
    Option = 3,
    /// `zmq_getsockopt` and other reads of options; dear, because `zmq_poll` nests it twice a socket.
    Getsockopt = 4,
    /// Sends.
    Send = 5,
    /// Receives.
    Recv = 6,
    /// Polls and pollers.
    Poll = 7,
    /// Proxies.
    Proxy = 8,
    /// `zmq_msg_*` other than send and receive.
    Msg = 9,
}

impl Class {
    /// Every class, in the order of their numbers.
    pub const ALL: [Self; 10] = [
        Self::Ctx,
        Self::Socket,
        Self::Endpoint,
        Self::Option,
        Self::Getsockopt,
        Self::Send,
        Self::Recv,
        Self::Poll,
        Self::Proxy,
        Self::Msg,
    ];

    /// This class in a set of classes.
    pub const fn bit(self) -> u16 {
        1 << self as u16
    }
}

/// What a call returns, in C.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Returns {
    /// `int`: the upper half of the register is garbage.
    Int,
    /// `uint32_t`.
    Unsigned,
    /// `size_t`.
    Size,
    /// A pointer.
    Pointer,
    /// Nothing.
    Void,
}

/// How a call says that it failed.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It cannot fail.
    Never = 0,
    /// -1.
    MinusOne = 1,
    /// A null pointer.
    Null = 2,
    /// 0 of a `uint32_t`.
    Zero = 3,
}

/// What the kernel side copies from the target's memory, and when. The numbers name arguments.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capture {
    /// Nothing but the arguments.
    Nothing = 0,
    /// At entry: the buffer at 1 of the length 2.
    SendBuffer = 1,
    /// At entry: the message at 0.
    SendMessage0 = 2,
    /// At entry: the message at 1.
    SendMessage1 = 3,
    /// At entry: the first buffer of the iovecs at 1, whose number is 2.
    SendIov = 4,
    /// At return: the buffer at 1 of the length 2, as far as it was filled.
    RecvBuffer = 5,
    /// At return: the message at 0.
    RecvMessage0 = 6,
    /// At return: the message at 1.
    RecvMessage1 = 7,
    /// At return: the first buffer of the iovecs at 1, whose number is behind the pointer 2.
    RecvIov = 8,
    /// At entry: the C string at 1.
    Text1 = 9,
    /// At entry: the option value at 2 of the length 3.
    OptionIn = 10,
    /// At return: the option value at 2, whose length is behind the pointer 3.
    OptionOut = 11,
    /// At return: the poll items at 0, whose number is 1.
    PollItems = 12,
    /// At return: the one poller event at 1.
    PollerEvent = 13,
    /// At return: as many of the poller events at 1 as the call returned.
    PollerEvents = 14,
    /// Ends the socket at 0, and with it the generation of its address.
    Close = 15,
    /// At return: the number that libzmq gave to the socket returned, 4 bytes.
    NewSocket = 16,
}

impl Capture {
    const fn from_bits(bits: u64) -> Self {
        match bits {
            1 => Self::SendBuffer,
            2 => Self::SendMessage0,
            3 => Self::SendMessage1,
            4 => Self::SendIov,
            5 => Self::RecvBuffer,
            6 => Self::RecvMessage0,
            7 => Self::RecvMessage1,
            8 => Self::RecvIov,
            9 => Self::Text1,
            10 => Self::OptionIn,
            11 => Self::OptionOut,
            12 => Self::PollItems,
            13 => Self::PollerEvent,
            14 => Self::PollerEvents,
            15 => Self::Close,
            16 => Self::NewSocket,
            _ => Self::Nothing,
        }
    }
}

/// An argument, by how it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arg {
    /// A context.
    Context,
    /// A socket.
    Socket,
    /// A socket or NULL.
    OptionalSocket,
    /// A poller.
    Poller,
    /// A pointer of no further interest.
    Pointer,
    /// `zmq_msg_t *`: shown by its payload where the call captures it.
    Message,
    /// A buffer, shown by its payload.
    Buffer,
    /// `zmq_iovec_t` or `struct iovec *`, shown by the payload of the first.
    Iov,
    /// `size_t *` with the number of iovecs.
    IovCount,
    /// `size_t`.
    Size,
    /// `int`.
    Int,
    /// `uint32_t`.
    Unsigned,
    /// `uint64_t`.
    Unsigned64,
    /// A C string, captured.
    Text,
    /// `ZMQ_DONTWAIT`, `ZMQ_SNDMORE`.
    Flags,
    /// `ZMQ_REQ`, ...
    SocketType,
    /// `ZMQ_IO_THREADS`, ...
    ContextOption,
    /// `ZMQ_LINGER`, ...
    SocketOption,
    /// The value of the option before it.
    OptionValue,
    /// Its length: shown only where the value is not.
    OptionLength,
    /// `zmq_pollitem_t *`, shown item by item.
    PollItems,
    /// `zmq_poller_event_t *`, shown event by event.
    PollerEvents,
    /// `ZMQ_POLLIN`, ...
    PollEvents,
    /// `ZMQ_EVENT_CONNECTED`, ...
    MonitorEvents,
    /// A property of a message.
    MessageProperty,
    /// `long`, milliseconds; -1 is for ever.
    Timeout,
    /// A file descriptor.
    Fd,
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Function {
    /// The exported symbol.
    pub name: &'static str,
    /// Its class.
    pub class: Class,
    /// Type of the result.
    pub returns: Returns,
    /// How it fails.
    pub failure: Failure,
    /// Whether `errno` then says why.
    pub errno: bool,
    /// What is copied.
    pub capture: Capture,
    /// Its arguments, at most six.
    pub args: &'static [Arg],
    /// Classes of the exported functions that it calls itself, which are not the program's calls.
    pub nests: u16,
}

impl Function {
    /// Index of the argument that is the socket (or context, or poller) that the call is about.
    pub const fn handle_arg(&self) -> Option<usize> {
        let mut index = 0;
        while index < self.args.len() {
            if matches!(self.args[index], Context | Socket | Poller) {
                return Some(index);
            }
            index += 1;
        }
        None
    }

    /// Whether the call's handle is a socket.
    pub const fn is_about_socket(&self) -> bool {
        match self.handle_arg() {
            Some(index) => matches!(self.args[index], Socket),
            None => false,
        }
    }
}

const fn row(
    name: &'static str,
    class: Class,
    returns: Returns,
    failure: Failure,
    capture: Capture,
    args: &'static [Arg],
) -> Function {
    Function {
        name,
        class,
        returns,
        failure,
        errno: !matches!(failure, Failure::Never),
        capture,
        args,
        nests: nested_classes(class),
    }
}

/// The usual call: `int`, -1 for failure.
const fn int(name: &'static str, class: Class, capture: Capture, args: &'static [Arg]) -> Function {
    row(name, class, Returns::Int, Failure::MinusOne, capture, args)
}

/// Which exported functions libzmq itself calls from within those of a class, measured with uprobes and
/// read in `src/zmq.cpp`: sendmsg -> msg_send, recv -> msg_close, poll -> getsockopt, socket_monitor ->
/// socket, setsockopt and bind, term -> ctx_term, proxy -> poll. A free callback of the program runs
/// inside `zmq_msg_close` or a receive; what *it* calls is of another class and is reported.
const fn nested_classes(class: Class) -> u16 {
    class.bit()
        | match class {
            In::Ctx => In::Msg.bit(),
            In::Socket => In::Option.bit() | In::Getsockopt.bit() | In::Endpoint.bit() | In::Msg.bit(),
            In::Endpoint | In::Option | In::Getsockopt | In::Send | In::Recv => In::Msg.bit(),
            In::Poll => In::Getsockopt.bit() | In::Msg.bit(),
            In::Proxy => In::Poll.bit() | In::Getsockopt.bit() | In::Msg.bit(),
            In::Msg => 0,
        }
}

/// Classes whose functions call exported functions of `class` themselves, other than `class`.
pub const fn nesting_classes(class: Class) -> u16 {
    let mut set = 0;
    let mut index = 0;
    while index < Class::ALL.len() {
        if nested_classes(Class::ALL[index]) & class.bit() != 0 {
            set |= Class::ALL[index].bit();
        }
        index += 1;
    }
    set & !class.bit()
}

/// Number of functions.
pub const FUNCTION_COUNT: usize = FUNCTIONS.len();

/// Every function that can be traced. A row's place is its number in records.
pub const FUNCTIONS: &[Function] = &[
    // Contexts
    row("zmq_ctx_new", In::Ctx, Returns::Pointer, Failure::Null, Cap::Nothing, &[]),
    row("zmq_init", In::Ctx, Returns::Pointer, Failure::Null, Cap::Nothing, &[Int]),
    int("zmq_ctx_set", In::Ctx, Cap::Nothing, &[Context, ContextOption, Int]),
    int("zmq_ctx_set_ext", In::Ctx, Cap::Nothing, &[Context, ContextOption, Pointer, Size]),
    int("zmq_ctx_get", In::Ctx, Cap::Nothing, &[Context, ContextOption]),
    int("zmq_ctx_get_ext", In::Ctx, Cap::Nothing, &[Context, ContextOption, Pointer, Pointer]),
    int("zmq_ctx_shutdown", In::Ctx, Cap::Nothing, &[Context]),
    int("zmq_ctx_term", In::Ctx, Cap::Nothing, &[Context]),
    int("zmq_ctx_destroy", In::Ctx, Cap::Nothing, &[Context]),
    int("zmq_term", In::Ctx, Cap::Nothing, &[Context]),
    // Sockets
    row("zmq_socket", In::Socket, Returns::Pointer, Failure::Null, Cap::NewSocket, &[Context, SocketType]),
    int("zmq_close", In::Socket, Cap::Close, &[Socket]),
    int("zmq_socket_monitor", In::Socket, Cap::Text1, &[Socket, Text, MonitorEvents]),
    int("zmq_socket_monitor_versioned", In::Socket, Cap::Text1, &[Socket, Text, MonitorEvents, Int, Int]),
    int("zmq_socket_monitor_pipes_stats", In::Socket, Cap::Nothing, &[Socket]),
    // Endpoints
    int("zmq_bind", In::Endpoint, Cap::Text1, &[Socket, Text]),
    int("zmq_connect", In::Endpoint, Cap::Text1, &[Socket, Text]),
    row("zmq_connect_peer", In::Endpoint, Returns::Unsigned, Failure::Zero, Cap::Text1, &[Socket, Text]),
    int("zmq_unbind", In::Endpoint, Cap::Text1, &[Socket, Text]),
    int("zmq_disconnect", In::Endpoint, Cap::Text1, &[Socket, Text]),
    int("zmq_disconnect_peer", In::Endpoint, Cap::Nothing, &[Socket, Unsigned]),
    int("zmq_join", In::Endpoint, Cap::Text1, &[Socket, Text]),
    int("zmq_leave", In::Endpoint, Cap::Text1, &[Socket, Text]),
    // Options
    int("zmq_setsockopt", In::Option, Cap::OptionIn, &[Socket, SocketOption, OptionValue, OptionLength]),
    int("zmq_getsockopt", In::Getsockopt, Cap::OptionOut, &[Socket, SocketOption, OptionValue, OptionLength]),
    int("zmq_socket_get_peer_state", In::Getsockopt, Cap::Nothing, &[Socket, Pointer, Size]),
    // Sends
    int("zmq_send", In::Send, Cap::SendBuffer, &[Socket, Buffer, Size, Flags]),
    int("zmq_send_const", In::Send, Cap::SendBuffer, &[Socket, Buffer, Size, Flags]),
    int("zmq_msg_send", In::Send, Cap::SendMessage0, &[Message, Socket, Flags]),
    int("zmq_sendmsg", In::Send, Cap::SendMessage1, &[Socket, Message, Flags]),
    int("zmq_sendiov", In::Send, Cap::SendIov, &[Socket, Iov, Size, Flags]),
    // Receives
    int("zmq_recv", In::Recv, Cap::RecvBuffer, &[Socket, Buffer, Size, Flags]),
    int("zmq_msg_recv", In::Recv, Cap::RecvMessage0, &[Message, Socket, Flags]),
    int("zmq_recvmsg", In::Recv, Cap::RecvMessage1, &[Socket, Message, Flags]),
    int("zmq_recviov", In::Recv, Cap::RecvIov, &[Socket, Iov, IovCount, Flags]),
    // Polls
    int("zmq_poll", In::Poll, Cap::PollItems, &[PollItems, Int, Timeout]),
    int("zmq_ppoll", In::Poll, Cap::PollItems, &[PollItems, Int, Timeout, Pointer]),
    row("zmq_poller_new", In::Poll, Returns::Pointer, Failure::Null, Cap::Nothing, &[]),
    int("zmq_poller_destroy", In::Poll, Cap::Nothing, &[Pointer]),
    int("zmq_poller_size", In::Poll, Cap::Nothing, &[Poller]),
    int("zmq_poller_add", In::Poll, Cap::Nothing, &[Poller, OptionalSocket, Pointer, PollEvents]),
    int("zmq_poller_modify", In::Poll, Cap::Nothing, &[Poller, OptionalSocket, PollEvents]),
    int("zmq_poller_remove", In::Poll, Cap::Nothing, &[Poller, OptionalSocket]),
    int("zmq_poller_add_fd", In::Poll, Cap::Nothing, &[Poller, Fd, Pointer, PollEvents]),
    int("zmq_poller_modify_fd", In::Poll, Cap::Nothing, &[Poller, Fd, PollEvents]),
    int("zmq_poller_remove_fd", In::Poll, Cap::Nothing, &[Poller, Fd]),
    int("zmq_poller_fd", In::Poll, Cap::Nothing, &[Poller, Pointer]),
    int("zmq_poller_wait", In::Poll, Cap::PollerEvent, &[Poller, PollerEvents, Timeout]),
    int("zmq_poller_wait_all", In::Poll, Cap::PollerEvents, &[Poller, PollerEvents, Int, Timeout]),
    // Proxies
    int("zmq_proxy", In::Proxy, Cap::Nothing, &[Socket, OptionalSocket, OptionalSocket]),
    int("zmq_proxy_steerable", In::Proxy, Cap::Nothing, &[Socket, OptionalSocket, OptionalSocket, OptionalSocket]),
    int("zmq_device", In::Proxy, Cap::Nothing, &[Int, Socket, OptionalSocket]),
    // Messages
    int("zmq_msg_init", In::Msg, Cap::Nothing, &[Message]),
    int("zmq_msg_init_size", In::Msg, Cap::Nothing, &[Message, Size]),
    int("zmq_msg_init_data", In::Msg, Cap::Nothing, &[Message, Pointer, Size, Pointer, Pointer]),
    int("zmq_msg_init_buffer", In::Msg, Cap::Nothing, &[Message, Pointer, Size]),
    int("zmq_msg_close", In::Msg, Cap::Nothing, &[Message]),
    int("zmq_msg_copy", In::Msg, Cap::Nothing, &[Message, Message]),
    int("zmq_msg_move", In::Msg, Cap::Nothing, &[Message, Message]),
    row("zmq_msg_data", In::Msg, Returns::Pointer, Failure::Never, Cap::Nothing, &[Message]),
    row("zmq_msg_size", In::Msg, Returns::Size, Failure::Never, Cap::Nothing, &[Message]),
    row("zmq_msg_more", In::Msg, Returns::Int, Failure::Never, Cap::Nothing, &[Message]),
    int("zmq_msg_get", In::Msg, Cap::Nothing, &[Message, MessageProperty]),
    int("zmq_msg_set", In::Msg, Cap::Nothing, &[Message, MessageProperty, Int]),
    row("zmq_msg_gets", In::Msg, Returns::Pointer, Failure::Null, Cap::Text1, &[Message, Text]),
    int("zmq_msg_set_routing_id", In::Msg, Cap::Nothing, &[Message, Unsigned]),
    row("zmq_msg_routing_id", In::Msg, Returns::Unsigned, Failure::Never, Cap::Nothing, &[Message]),
    int("zmq_msg_set_group", In::Msg, Cap::Text1, &[Message, Text]),
    row("zmq_msg_group", In::Msg, Returns::Pointer, Failure::Never, Cap::Nothing, &[Message]),
];

/// All that the kernel side must know of the function a probe sits on, packed into the probe's cookie.
///
/// Bits, from the lowest: function 8, library 4, capture 6, handle argument 3 (7: none), failure 2,
/// errno 1, class 4, nested classes 16, whether the caller is to be checked 1.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Cookie(pub u64);

impl Cookie {
    /// The cookie for row `function` of [`FUNCTIONS`] in the process's libzmq number `library`. With
    /// `check_caller`, calls that libzmq itself makes are told by their return address.
    pub const fn new(function: usize, library: usize, check_caller: bool) -> Self {
        let row = &FUNCTIONS[function];
        let handle = match row.handle_arg() {
            Some(index) => index as u64,
            None => 7,
        };
        Self(
            function as u64
                | (library as u64) << 8
                | (row.capture as u64) << 12
                | handle << 18
                | (row.failure as u64) << 21
                | (row.errno as u64) << 23
                | (row.class as u64) << 24
                | (row.nests as u64) << 28
                | (check_caller as u64) << 44,
        )
    }

    /// Row of [`FUNCTIONS`].
    #[inline(always)]
    pub const fn function(self) -> u8 {
        self.0 as u8
    }

    /// Number of the libzmq within its process.
    #[inline(always)]
    pub const fn library(self) -> u8 {
        (self.0 >> 8) as u8 & 0xf
    }

    /// See [`Function::capture`].
    #[inline(always)]
    pub const fn capture(self) -> Capture {
        Capture::from_bits((self.0 >> 12) & 0x3f)
    }

    /// See [`Function::handle_arg`]; 7: none.
    #[inline(always)]
    pub const fn handle_arg(self) -> usize {
        (self.0 >> 18) as usize & 7
    }

    /// Whether `ret` (the whole register) says that the call failed.
    #[inline(always)]
    pub const fn failed(self, ret: i64) -> bool {
        match (self.0 >> 21) & 3 {
            1 => ret as i32 == -1,
            2 => ret == 0,
            3 => ret as u32 == 0,
            _ => false,
        }
    }

    /// See [`Function::errno`].
    #[inline(always)]
    pub const fn sets_errno(self) -> bool {
        self.0 >> 23 & 1 == 1
    }

    /// The function's class as a set.
    #[inline(always)]
    pub const fn class_bit(self) -> u16 {
        1 << (self.0 >> 24 & 0xf)
    }

    /// Whether the caller is to be checked.
    #[inline(always)]
    pub const fn checks_caller(self) -> bool {
        self.0 >> 44 & 1 == 1
    }

    /// See [`Function::nests`].
    #[inline(always)]
    pub const fn nests(self) -> u16 {
        (self.0 >> 28) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_carry_their_row() {
        const { assert!(FUNCTION_COUNT <= 256) };
        for (index, function) in FUNCTIONS.iter().enumerate() {
            let cookie = Cookie::new(index, 3, index % 2 == 0);
            assert_eq!(cookie.function() as usize, index);
            assert_eq!(cookie.library(), 3);
            assert_eq!(cookie.checks_caller(), index % 2 == 0);
            assert_eq!(cookie.capture(), function.capture, "{}", function.name);
            assert_eq!(cookie.handle_arg(), function.handle_arg().unwrap_or(7));
            assert_eq!(cookie.sets_errno(), function.errno);
            assert_eq!(cookie.class_bit(), function.class.bit());
            assert_eq!(cookie.nests(), function.nests);
            assert!(function.args.len() <= 6);
        }
    }

    #[test]
    fn names_are_unique() {
        for (index, function) in FUNCTIONS.iter().enumerate() {
            assert!(FUNCTIONS[..index].iter().all(|other| other.name != function.name), "{}", function.name);
        }
    }

    #[test]
    fn failure_is_read_from_the_type_that_c_returns() {
        let close = Cookie::new(position("zmq_close"), 0, false);
        assert!(close.failed(0xffff_ffff), "the upper half of an int's register is garbage");
        assert!(!close.failed(0));
        let socket = Cookie::new(position("zmq_socket"), 0, false);
        assert!(socket.failed(0) && !socket.failed(-1));
    }

    fn position(name: &str) -> usize {
        FUNCTIONS.iter().position(|function| function.name == name).expect("in the table")
    }
}
