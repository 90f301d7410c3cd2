//! The `zmqtrace` program: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    zmqtrace::cli::main()
}
