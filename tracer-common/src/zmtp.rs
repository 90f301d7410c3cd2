//! ZMTP on the wire: where greeting, frames and messages of one direction of a connection end.
//!
//! [`Walk`] is the state, and it is the same code on both sides of the kernel boundary: the kernel side drives it over
//! what system calls move, userspace over slices (a fuzzer holds that against a plain parser). It looks at greetings
//! and headers only; what lies between is skipped, however long it is.
//!
//! Sources: <https://rfc.zeromq.org/spec/13> (ZMTP 1.0), 15 (2.0), 23 (3.0) and 37 (3.1), and libzmq's `stream_engine`
//! for what it sends to older peers: it begins with the signature of a 3.x greeting, which reads as the header of a 1.0
//! frame, and goes on as its peer's version demands. So the end of one direction's greeting depends on the other's.

/// Bytes of a signature, `FF`, eight bytes, `7F`.
const SIGNATURE_BYTES: u8 = 10;
/// Where a greeting has its revision.
const REVISION: u8 = 10;
/// Bytes of a greeting up to ZMTP 2.0: signature, revision, socket type.
const GREETING_2_BYTES: u8 = 12;
/// Bytes of a greeting of ZMTP 3.0 and later.
const GREETING_3_BYTES: u8 = 64;
/// Where a 3.x greeting has the name of its mechanism, of which the first eight bytes are kept.
const MECHANISM: core::ops::Range<u8> = 12..20;
/// Where a 3.x greeting says whether its sender is the server of the mechanism.
const AS_SERVER: u8 = 32;

/// Flag of a frame: more parts of the message follow.
pub const MORE: u8 = 1;
/// Flag of a frame since ZMTP 2.0: its size has eight bytes.
pub const LONG: u8 = 2;
/// Flag of a frame since ZMTP 3.0: it is a command.
pub const COMMAND: u8 = 4;

/// A size that no frame has: what gives one is not at a frame's start.
const ABSURD_SIZE: u64 = 1 << 48;

/// [`Walk::revision`]: not seen yet.
pub const REVISION_UNKNOWN: u8 = 0xff;
/// [`Walk::revision`]: the sender has none: ZMTP 1.0.
pub const REVISION_NONE: u8 = 0xfe;

/// [`Walk::as_server`]: the greeting is one of ZMTP 2.0 or before, which has no mechanism but a socket type.
pub const SHORT_GREETING: u8 = 2;

/// Whether frames as of ZMTP 1.0 follow a greeting, of which these are the first bytes.
#[inline(always)]
pub const fn is_old(greeting: &[u8; REVISION as usize + 1]) -> bool {
    greeting[0] != 0xff || greeting[SIGNATURE_BYTES as usize - 1] & 1 == 0 || greeting[REVISION as usize] == 0
}

/// What a walk is in, one byte.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It is not known where a frame begins.
    Unknown = 0,
    /// The greeting.
    Greeting = 1,
    /// Frames as of ZMTP 1.0: size, flags, body.
    Frames1 = 2,
    /// Frames as of ZMTP 2.0 and later: flags, size, body.
    Frames2 = 3,
}

/// What has just ended, one byte.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Nothing.
    Nothing = 0,
    /// The greeting.
    Greeting = 1,
    /// A part of a message that others follow.
    Part = 2,
    /// A message, with its last part.
    Message = 3,
    /// A command.
    Command = 4,
    /// The frame with which a peer before ZMTP 3.0 names its identity.
    Identity = 5,
    /// The rest of the frame in which the walk began: its flags are not known.
    Rest = 6,
    /// What came cannot be a frame: the walk is where it should not be.
    Nonsense = 7,
}

/// How far one direction of a connection has been walked. All zero: nothing is known of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walk {
    /// Bytes of the frame's body to come, at which nobody need look.
    pub skip: u64,
    /// The size, as far as its bytes have come.
    size: u64,
    /// The name of the greeting's mechanism, its first eight bytes as they came.
    pub mechanism: [u8; 8],
    /// Frames that ended: parts and messages, no commands.
    pub frames: u64,
    /// Messages that ended.
    pub messages: u64,
    /// Commands that ended.
    pub commands: u64,
    /// [`Phase`].
    phase: u8,
    /// Bytes of the greeting, or of the frame's header, that have come.
    seen: u8,
    /// Flags of the frame, once they have come.
    flags: u8,
    /// ZMTP revision that the greeting names: 0 is 1.0, 1 and 2 are 2.0, 3 is 3.x. See [`REVISION_UNKNOWN`].
    revision: u8,
    /// Minor number of a 3.x greeting; of a [short](SHORT_GREETING) one the number of its sender's socket type.
    pub minor: u8,
    /// 1: the greeting's sender is the server of the mechanism; or [`SHORT_GREETING`].
    pub as_server: u8,
    /// 1: the next frame names an identity.
    identity_due: u8,
    /// 1: the frame was under way when the walk began.
    is_rest: u8,
}

impl Walk {
    /// At the first byte of a connection.
    pub const fn at_start() -> Self {
        Self { phase: Phase::Greeting as u8, revision: REVISION_UNKNOWN, ..Self::unknown() }
    }

    /// Nowhere.
    pub const fn unknown() -> Self {
        Self {
            skip: 0,
            size: 0,
            mechanism: [0; 8],
            frames: 0,
            messages: 0,
            commands: 0,
            phase: Phase::Unknown as u8,
            seen: 0,
            flags: 0,
            revision: REVISION_UNKNOWN,
            minor: 0,
            as_server: 0,
            identity_due: 0,
            is_rest: 0,
        }
    }

    /// Puts it where a frame ends in `skip` bytes, of ZMTP 1.0 if `is_old`. What it counted before remains.
    #[inline(always)]
    pub const fn join(&mut self, skip: u64, is_old: bool) {
        self.phase = if is_old { Phase::Frames1 as u8 } else { Phase::Frames2 as u8 };
        self.skip = skip;
        self.seen = 0;
        self.flags = 0;
        self.size = 0;
        self.identity_due = 0;
        self.is_rest = (skip > 0) as u8;
    }

    /// Puts it inside the body of a frame, of which all but `skip` bytes have come.
    pub const fn join_inside(&mut self, flags: u8, skip: u64) {
        self.join(skip, false);
        self.flags = flags;
        self.is_rest = 0;
    }

    /// Gives up. What it counted remains.
    #[inline(always)]
    pub const fn lose(&mut self) {
        self.phase = Phase::Unknown as u8;
        self.skip = 0;
        self.seen = 0;
        self.is_rest = 0;
    }

    /// What it is in.
    #[inline(always)]
    pub const fn phase(&self) -> Phase {
        match self.phase {
            1 => Phase::Greeting,
            2 => Phase::Frames1,
            3 => Phase::Frames2,
            _ => Phase::Unknown,
        }
    }

    /// Whether it is known where frames begin.
    #[inline(always)]
    pub const fn is_synchronised(&self) -> bool {
        self.phase != Phase::Unknown as u8
    }

    /// The revision of ZMTP that its greeting named, or [`REVISION_UNKNOWN`], or [`REVISION_NONE`].
    #[inline(always)]
    pub const fn revision(&self) -> u8 {
        self.revision
    }

    /// Whether a frame's first byte is next.
    #[inline(always)]
    pub const fn is_at_boundary(&self) -> bool {
        let is_greeted = self.phase == Phase::Greeting as u8 && self.identity_due != 0;
        is_greeted || self.phase >= Phase::Frames1 as u8 && self.skip == 0 && self.seen == 0
    }

    /// Whether it is inside a frame that ends a message, which no identity does. Of its first bytes it is not known in
    /// ZMTP 1.0.
    #[inline(always)]
    pub const fn is_in_last_part(&self) -> bool {
        (self.skip > 0 || self.seen > 0)
            && self.phase >= Phase::Frames1 as u8
            && self.flags & (MORE | COMMAND) == 0
            && self.identity_due == 0
            && self.is_rest == 0
    }

    /// Whether it is inside the body of a command, or of an identity.
    #[inline(always)]
    pub const fn is_in_command(&self) -> bool {
        self.skip > 0 && (self.flags & COMMAND != 0 || self.identity_due != 0) && self.is_rest == 0
    }

    /// Whether it is inside the frame in which it began.
    #[inline(always)]
    pub const fn is_in_rest(&self) -> bool {
        self.is_rest != 0
    }

    /// Passes `len` bytes of a body, at most [`skip`](Self::skip).
    #[inline(always)]
    pub const fn pass(&mut self, len: u64) -> Ended {
        self.skip = self.skip.saturating_sub(len);
        if self.skip == 0 { self.end() } else { Ended::Nothing }
    }

    /// Leaves the greeting if the peer is one without versions, to which the signature was the header of a frame: it names
    /// an identity, of which nothing may follow. To be asked before each byte of a greeting, and when the other direction
    /// has moved. `other`: as for [`take`](Self::take).
    #[inline(always)]
    pub const fn recognise(&mut self, other: u8) -> Ended {
        let is_signed = self.phase == Phase::Greeting as u8 && self.seen == SIGNATURE_BYTES;
        if !is_signed || other != REVISION_NONE {
            return Ended::Nothing;
        }
        self.revision = REVISION_NONE;
        self.long_frame1(0)
    }

    /// Takes the next byte, none of a body. `other`: what the walk of the other direction says is its
    /// [`revision`](Self::revision).
    #[inline(always)]
    pub const fn take(&mut self, byte: u8, other: u8) -> Ended {
        if self.phase == Phase::Greeting as u8 {
            self.begin_frames(byte, other);
        }
        match self.phase() {
            Phase::Frames2 => self.take_header2(byte),
            Phase::Frames1 => self.take_header1(byte),
            Phase::Greeting => self.take_greeting(byte, other),
            Phase::Unknown => Ended::Nothing,
        }
    }

    /// Whether the first byte of a frame of ZMTP 2.0 or later is next, of no identity. Then such frames may be passed
    /// without its help, if they are [counted](Self::count).
    #[inline(always)]
    pub const fn expects_frame2(&self) -> bool {
        self.phase == Phase::Frames2 as u8 && self.skip == 0 && self.seen == 0 && self.identity_due == 0
    }

    /// Whole frames were passed, of which so many ended messages.
    #[inline(always)]
    pub const fn count(&mut self, frames: u32, messages: u32) {
        self.frames += frames as u64;
        self.messages += messages as u64;
    }

    #[inline(always)]
    const fn end(&mut self) -> Ended {
        self.seen = 0;
        self.size = 0;
        if self.is_rest != 0 {
            self.is_rest = 0;
            return Ended::Rest;
        }
        if self.identity_due != 0 {
            self.identity_due = 0;
            return Ended::Identity;
        }
        if self.flags & COMMAND != 0 {
            self.commands += 1;
            return Ended::Command;
        }
        self.frames += 1;
        if self.flags & MORE != 0 {
            return Ended::Part;
        }
        self.messages += 1;
        Ended::Message
    }

    #[inline(always)]
    const fn nonsense(&mut self) -> Ended {
        self.lose();
        Ended::Nonsense
    }

    #[inline(always)]
    const fn take_header2(&mut self, byte: u8) -> Ended {
        if self.seen == 0 {
            if byte & !(MORE | LONG | COMMAND) != 0 || byte & (MORE | COMMAND) == MORE | COMMAND {
                return self.nonsense();
            }
            self.flags = byte;
            self.size = 0;
            self.seen = 1;
            return Ended::Nothing;
        }
        self.size = self.size << 8 | byte as u64;
        self.seen += 1;
        let header = if self.flags & LONG != 0 { 9 } else { 2 };
        if self.seen < header { Ended::Nothing } else { self.body(self.size) }
    }

    #[inline(always)]
    const fn take_header1(&mut self, byte: u8) -> Ended {
        // One byte of size, or FF and eight; the size counts the flags, which follow.
        if self.seen == 0 {
            if byte == 0 {
                return self.nonsense();
            }
            self.flags = 0;
            self.size = 0;
            // With a short size the next byte, as behind nine, is the flags'.
            self.seen = if byte == 0xff { 1 } else { 9 };
            if byte != 0xff {
                self.size = byte as u64;
            }
            return Ended::Nothing;
        }
        if self.seen < 9 {
            self.size = self.size << 8 | byte as u64;
            self.seen += 1;
            return Ended::Nothing;
        }
        if self.size == 0 {
            return self.nonsense();
        }
        self.flags = byte & MORE;
        self.body(self.size - 1)
    }

    #[inline(always)]
    const fn body(&mut self, size: u64) -> Ended {
        if size >= ABSURD_SIZE {
            return self.nonsense();
        }
        self.seen = 0;
        self.skip = size;
        if size == 0 { self.end() } else { Ended::Nothing }
    }

    /// Leaves the greeting if this byte is the first of a frame.
    #[inline(always)]
    const fn begin_frames(&mut self, byte: u8, other: u8) {
        if self.seen == 0 && byte != 0xff {
            // A short frame of ZMTP 1.0.
            self.revision = REVISION_NONE;
            self.identity_due = 1;
            self.phase = Phase::Frames1 as u8;
        } else if self.identity_due != 0 {
            // A greeting up to ZMTP 2.0 has ended. libzmq 3.2 sends its own without having seen the other's, and only
            // then the frames that the older of the two knows.
            self.seen = 0;
            self.phase = if self.revision == 0 || other == 0 { Phase::Frames1 as u8 } else { Phase::Frames2 as u8 };
        }
    }

    #[inline(always)]
    const fn take_greeting(&mut self, byte: u8, other: u8) -> Ended {
        let at = self.seen;
        if 0 < at && at < SIGNATURE_BYTES - 1 {
            self.size = self.size << 8 | byte as u64;
        }
        if at == SIGNATURE_BYTES - 1 && byte & 1 == 0 {
            // A long frame of ZMTP 1.0, whose flags this is.
            self.revision = REVISION_NONE;
            return self.long_frame1(byte);
        }
        if at == REVISION {
            // What no version is must not read as that there is none.
            self.revision = if byte < REVISION_NONE { byte } else { REVISION_NONE - 1 };
        }
        self.seen += 1;
        if self.seen <= REVISION + 1 {
            return Ended::Nothing;
        }
        if at == GREETING_2_BYTES - 1 {
            // Who sends 3.x sends this byte as the other's revision demands: it is not asked for later.
            if self.revision < 3 || other < 3 {
                // The socket type was this byte.
                self.minor = byte;
                self.as_server = SHORT_GREETING;
                self.identity_due = 1;
                return Ended::Greeting;
            }
            self.minor = byte;
        } else if MECHANISM.start <= at && at < MECHANISM.end {
            self.mechanism[(at - MECHANISM.start) as usize & 7] = byte;
        } else if at == AS_SERVER {
            self.as_server = byte & 1;
        }
        if self.seen < GREETING_3_BYTES {
            return Ended::Nothing;
        }
        self.seen = 0;
        self.phase = Phase::Frames2 as u8;
        Ended::Greeting
    }

    #[inline(always)]
    const fn long_frame1(&mut self, flags: u8) -> Ended {
        self.phase = Phase::Frames1 as u8;
        self.identity_due = 1;
        if self.size == 0 {
            return self.nonsense();
        }
        self.flags = flags & MORE;
        self.body(self.size - 1)
    }
}
