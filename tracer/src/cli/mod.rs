//! What a person types. Each flag is defined once, in [`args`]; help, man page and completions are made
//! from that. What was typed is resolved once into what will run, in `run`.

pub mod args;
mod run;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use self::args::{Arguments, Command, Document};

/// Runs the program. The exit status tells the cause of a failure.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("zmqtrace: {error}");
            ExitCode::from(error.exit_status())
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), crate::error::Error> {
    match &arguments.command {
        Command::Trace(trace) => run::trace(trace),
        Command::Stat(stat) => run::stat(stat),
        Command::Generate { document } => {
            generate(*document);
            Ok(())
        }
    }
}

/// The man page or a shell's completions, to standard output. A closed pipe is no failure.
fn generate(document: Document) {
    let mut command = Arguments::command();
    let mut out = std::io::stdout().lock();
    match document {
        Document::Man => _ = clap_mangen::Man::new(command).render(&mut out),
        Document::Bash => clap_complete::generate(clap_complete::Shell::Bash, &mut command, "zmqtrace", &mut out),
        Document::Zsh => clap_complete::generate(clap_complete::Shell::Zsh, &mut command, "zmqtrace", &mut out),
        Document::Fish => clap_complete::generate(clap_complete::Shell::Fish, &mut command, "zmqtrace", &mut out),
    }
}
