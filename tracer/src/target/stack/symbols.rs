//! Names for addresses: function, module, and, from debug information, file and line.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    os::fd::AsRawFd,
    panic::{self, AssertUnwindSafe},
    path::PathBuf,
};

use blazesym::symbolize::{
    CodeInfo, Input, Sym, Symbolizer,
    source::{Elf, Source},
};

use super::{
    Addresses,
    mappings::{Code, Mappings, OpenFile},
};
use crate::event::{Frame, Stack};

/// Debug information that is larger is not read: its units are all looked at for the first address.
const MAX_DEBUG_BYTES: u64 = 128 << 20;

/// Looks names up, and remembers tables that it has read.
#[derive(Debug)]
pub struct Symbols {
    symbolizer: Symbolizer,
    /// Files, and whether with their debug information, that blazesym did not survive.
    unsound: HashSet<(usize, bool)>,
}

impl Default for Symbols {
    fn default() -> Self {
        Self { symbolizer: symbolizer(), unsound: HashSet::new() }
    }
}

fn symbolizer() -> Symbolizer {
    // Files are those that the process has mapped, and kept open here: they are never exchanged.
    Symbolizer::builder().enable_auto_reload(false).enable_demangling(false).build()
}

/// Addresses to be looked up in one file.
struct Wanted<'mappings> {
    file: &'mappings OpenFile,
    /// Addresses inside of instructions, as the process has them.
    lookups: Vec<u64>,
    /// The same in the file's own terms.
    in_file: Vec<u64>,
}

impl Symbols {
    pub fn symbolise(&mut self, mappings: &Mappings, stacks: &[Addresses], lines: bool) -> Vec<Stack> {
        let mut named: HashMap<u64, Vec<Frame>> = HashMap::new();
        let mut by_file: BTreeMap<usize, Wanted<'_>> = BTreeMap::new();
        for lookup in stacks.iter().flat_map(|stack| &stack.frames).map(|frame| frame.lookup()) {
            if named.insert(lookup, Vec::new()).is_some() {
                continue;
            }
            let Some(Code::File(code)) = mappings.find(lookup) else { continue };
            let new = || Wanted { file: code.file, lookups: Vec::new(), in_file: Vec::new() };
            let wanted = by_file.entry(code.index).or_insert_with(new);
            wanted.lookups.push(lookup);
            wanted.in_file.push(lookup.wrapping_sub(code.bias));
        }
        for (index, wanted) in by_file {
            let module = mappings.path(index);
            let has_lines = (1..=MAX_DEBUG_BYTES).contains(&wanted.file.debug_bytes);
            let with_lines = if lines && has_lines { self.look_up(index, &wanted, true) } else { None };
            let found = with_lines.or_else(|| self.look_up(index, &wanted, false)).unwrap_or_default();
            let mut found = found.into_iter();
            for lookup in wanted.lookups {
                let mut frames = found.next().filter(|frames| !frames.is_empty()).unwrap_or(vec![Frame::default()]);
                frames.iter_mut().for_each(|frame| frame.module.clone_from(&module));
                named.insert(lookup, frames);
            }
        }
        stacks.iter().map(|stack| assemble(stack, &named)).collect()
    }

    /// The functions at each of the addresses; `None` when the file cannot be made sense of.
    fn look_up(&mut self, index: usize, wanted: &Wanted<'_>, debug_syms: bool) -> Option<Vec<Vec<Frame>>> {
        if self.unsound.contains(&(index, debug_syms)) {
            return None;
        }
        let path = PathBuf::from(format!("/proc/self/fd/{}", wanted.file.file.as_raw_fd()));
        match look_up(&self.symbolizer, path, &wanted.in_file, debug_syms) {
            Ok(found) => Some(found),
            Err(reason) => {
                log::debug!("no symbols from file {index} of the process (debug information: {debug_syms}): {reason}");
                self.unsound.insert((index, debug_syms));
                // What it was doing may be half done.
                self.symbolizer = symbolizer();
                None
            }
        }
    }
}

/// The functions at addresses of a file, in the file's own terms. blazesym 0.2.7 panics on some damaged debug
/// information.
pub(super) fn look_up(
    symbolizer: &Symbolizer,
    path: PathBuf,
    addresses: &[u64],
    debug_syms: bool,
) -> Result<Vec<Vec<Frame>>, String> {
    let mut elf = Elf::new(path);
    elf.debug_syms = debug_syms;
    let symbolise = || {
        let found = symbolizer.symbolize(&Source::Elf(elf), Input::VirtOffset(addresses))?;
        Ok(found.iter().map(|found| found.as_sym().map(frames_of).unwrap_or_default()).collect())
    };
    match panic::catch_unwind(AssertUnwindSafe(symbolise)) {
        Ok(found) => found.map_err(|error: blazesym::Error| error.to_string()),
        Err(_) => Err("it is damaged".into()),
    }
}

fn assemble(stack: &Addresses, named: &HashMap<u64, Vec<Frame>>) -> Stack {
    let unnamed = [Frame::default()];
    let frames = stack.frames.iter().flat_map(|at| {
        let found = named.get(&at.lookup()).map(Vec::as_slice).filter(|found| !found.is_empty());
        found.unwrap_or(&unnamed).iter().map(|frame| Frame { address: at.address, ..frame.clone() })
    });
    Stack { frames: frames.collect(), truncated: stack.truncated }
}

/// The functions at one address, innermost first: those that the compiler inlined, then the one that is there. An
/// outer one is where it calls the inner one.
fn frames_of(symbol: &Sym<'_>) -> Vec<Frame> {
    let frame = |name: &str, code: Option<&CodeInfo<'_>>| Frame {
        function: Some(demangled(name)),
        file: code.map(|code| code.to_path().to_string_lossy().into_owned()),
        line: code.and_then(|code| code.line),
        ..Frame::default()
    };
    let inlined = symbol.inlined.iter().rev().map(|inlined| frame(&inlined.name, inlined.code_info.as_ref()));
    inlined.chain([frame(&symbol.name, symbol.code_info.as_deref())]).collect()
}

/// As the source has it. Only what begins as mangled names do is one: C may call its functions `i` or `Ss`, which C++
/// writes for types.
fn demangled(name: &str) -> String {
    if !name.starts_with("_Z") && !name.starts_with("_R") {
        return name.to_owned();
    }
    if let Ok(found) = rustc_demangle::try_demangle(name) {
        return format!("{found:#}");
    }
    let found = cpp_demangle::Symbol::new(name).ok().and_then(|symbol| symbol.demangle().ok());
    found.unwrap_or_else(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::demangled;

    #[test]
    fn only_mangled_names_are_demangled() {
        for plain in ["i", "Ss", "Pc", "w", "rx", "main", "_start", "_Zrubbish", "_Rubbish", ""] {
            assert_eq!(demangled(plain), plain);
        }
        assert_eq!(demangled("_ZN3zmq5ctx_t9terminateEv"), "zmq::ctx_t::terminate()");
        assert_eq!(demangled("_ZN4core3fmt5Write9write_fmt17h0123456789abcdefE"), "core::fmt::Write::write_fmt");
        assert_eq!(demangled("_RNvCs1234_7mycrate3foo"), "mycrate::foo");
    }
}
