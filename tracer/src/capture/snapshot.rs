//! Looks into processes: everything that `/proc`, the kernel's tables and their memory say at a moment.

use std::{fs, io};

use crate::{
    inspect::{self, Detail, Look, Subject, Watched, image::Image},
    target::{Memory, Process},
};

/// Looks for what libzmq holds in a process.
///
/// # Errors
/// When the process is gone, or may not be looked into.
pub fn look(process: &Process, detail: Detail) -> io::Result<Look> {
    let watched = watched(process.pid)?;
    let files = process.file_mappings();
    let versions: Vec<_> = process.libraries.iter().map(|library| library.version).collect();
    let memory = Memory::new(process.pid);
    let image = Image::new(&memory);
    let subject =
        Subject { own_pid: process.own_pid(), image: &image, watched: &watched, files: &files, versions: &versions };
    Ok(inspect::look(&subject, detail))
}

/// What the process's epoll fds watch.
fn watched(pid: u32) -> io::Result<Vec<Watched>> {
    let mut watched = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let Ok(entry) = entry else { continue };
        let Ok(link) = fs::read_link(entry.path()) else { continue };
        if link.as_os_str() == "anon_inode:[eventpoll]" {
            let path = format!("/proc/{pid}/fdinfo/{}", entry.file_name().to_string_lossy());
            watched.extend(inspect::parse_fdinfo(&fs::read_to_string(path).unwrap_or_default()));
        }
    }
    Ok(watched)
}
