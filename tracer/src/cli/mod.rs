//! What a person types. Each flag is defined once, in [`args`]; help, man page and completions are made
//! from that. What was typed is resolved once into what will run, in `run`.

pub mod args;
mod deadline;
mod run;

use std::{io::Write as _, process::ExitCode};

use clap::{CommandFactory, Parser};

use self::args::{Arguments, Command, Document};

/// Runs the program. The exit status tells the cause of a failure.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&error);
            ExitCode::from(error.exit_status())
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), crate::error::Error> {
    match &arguments.command {
        Command::Trace(trace) => run::trace(trace),
        Command::Stat(stat) => run::stat(stat),
        Command::Latency(latency) => run::latency(latency),
        Command::Sockets(sockets) => run::sockets(sockets),
        Command::Generate { document } => {
            generate(*document);
            Ok(())
        }
    }
}

/// The man pages or a shell's completions, to standard output. A closed pipe is no failure.
fn generate(document: Document) {
    let mut command = Arguments::command();
    let mut text = Vec::new();
    let shell = match document {
        Document::Man => None,
        Document::Bash => Some(clap_complete::Shell::Bash),
        Document::Zsh => Some(clap_complete::Shell::Zsh),
        Document::Fish => Some(clap_complete::Shell::Fish),
    };
    // Writing to a Vec cannot fail.
    match shell {
        Some(shell) => clap_complete::generate(shell, &mut command, "zmqtrace", &mut text),
        None => {
            command.build();
            let pages = command.get_subcommands().filter(|page| !page.is_hide_set() && page.get_name() != "help");
            let pages: Vec<_> = std::iter::once(&command).chain(pages).cloned().collect();
            for page in pages {
                let _ = clap_mangen::Man::new(page).render(&mut text);
            }
        }
    }
    let _ = std::io::stdout().write_all(&text);
}

/// A diagnostic, to standard error. That it cannot be written is no reason to stop.
pub(crate) fn say(message: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "zmqtrace: {message}");
}
