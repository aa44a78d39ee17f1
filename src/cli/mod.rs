//! The command line, spelled as Vault's: `-flag` and `--flag`, `-flag=value` and `-flag value`.
//!
//! One file per command. A command gets a [`Terminal`] and answers with its exit code; only `main` ends the process.

use std::ffi::OsString;

use clap::{ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand};

use self::terminal::Terminal;

mod argv;
mod backup;
mod client;
mod generate_root;
mod hsm;
mod init;
mod interrupt;
mod output;
mod progress;
mod recover_hsm;
mod recovery;
mod rekey;
mod restore_needs;
mod rotate;
mod seal;
mod secret_argument;
mod server;
mod shares;
mod status;
pub mod terminal;
#[cfg(test)]
mod tests;
mod unseal;

pub use hsm::DoctorArgs;
pub use secret_argument::SecretArgument;
pub use server::ServerArgs;

/// The whole command line.
#[derive(Parser, Debug)]
#[command(
    name = "sos",
    disable_version_flag = true,
    about = "A secrets gateway with Vault's API and its root of trust in an HSM"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Start the server
    Server(ServerArgs),
    /// Init, unseal, seal and other work of an operator
    #[command(subcommand)]
    Operator(Operator),
    /// Print whether the server is sealed (exit code 0 unsealed, 2 sealed, 1 error)
    Status(status::StatusArgs),
    /// The HSMs that wrap the root key: list, add, remove, rewrap
    #[command(subcommand)]
    Seal(seal::SealCommand),
    /// Rehearse the loss of HSM and machine
    #[command(subcommand)]
    Recovery(recovery::RecoveryCommand),
    /// Take, check and restore backups
    #[command(subcommand)]
    Backup(backup::BackupCommand),
    /// Look after the HSM
    #[command(subcommand)]
    Hsm(HsmCommand),
    /// Print the version
    Version,
}

#[derive(Subcommand, Debug)]
enum Operator {
    /// Initialise the server and print its shares and root token once
    Init(init::InitArgs),
    /// Give one share towards unsealing
    Unseal(unseal::UnsealArgs),
    /// Seal the server
    Seal(unseal::SealArgs),
    /// Print whether the server is sealed
    Status(status::StatusArgs),
    /// Make new shares
    Rekey(rekey::RekeyArgs),
    /// Make a new root token with shares
    GenerateRoot(generate_root::GenerateRootArgs),
    /// Start a new term of the storage encryption key
    Rotate(rotate::RotateArgs),
    /// Put the keys of a lost HSM onto a new one, with the escrow shares
    RecoverHsm(recover_hsm::RecoverArgs),
}

#[derive(Subcommand, Debug)]
enum HsmCommand {
    /// Check slot, PIN, mechanisms, limits and speed, and say what to fix
    Doctor(DoctorArgs),
    /// Show objects on the HSMs that no record names, or destroy one of them
    Orphans(hsm::OrphansArgs),
    /// Measure it without a server, for scripts/bench; makes and destroys a key
    #[command(hide = true)]
    Bench(hsm::BenchArgs),
}

/// Why a command failed: the text for the operator and the exit code.
#[derive(Debug)]
struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// A wrong use of the command (exit code 1).
    fn usage(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into() }
    }

    /// The server refused or could not be reached (exit code 2).
    fn request(doing: &str, error: impl std::fmt::Display) -> Self {
        Self { code: 2, message: format!("Error {doing}: {error}") }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::usage(format!("cannot read or write on the terminal: {error}"))
    }
}

/// Runs the command line and answers the exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    run_with(arguments.into_iter().collect(), &mut Terminal::process())
}

fn run_with(arguments: Vec<OsString>, terminal: &mut Terminal<'_>) -> u8 {
    let program = arguments.first().cloned().unwrap_or_default();
    let arguments = argv::normalise(arguments);
    if arguments.len() == 2 && arguments[1] == "--version" {
        return finish(version(&program, terminal), terminal);
    }
    let parsed =
        lenient_switches(Cli::command()).try_get_matches_from(arguments).and_then(|matches| Cli::from_arg_matches(&matches));
    match parsed {
        Ok(cli) => finish(dispatch(cli.command, &program, terminal), terminal),
        Err(error) => {
            let text = error.render();
            if error.use_stderr() {
                terminal.complain(text);
                return 1;
            }
            finish(terminal.print(text).map(|()| 0).map_err(Failure::from), terminal)
        }
    }
}

fn dispatch(command: Command, program: &OsString, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    match command {
        Command::Server(args) => server::run(args, terminal),
        Command::Status(args) | Command::Operator(Operator::Status(args)) => status::run(&args, terminal),
        Command::Operator(Operator::Init(args)) => init::run(&args, terminal),
        Command::Operator(Operator::Unseal(args)) => unseal::run(args, terminal),
        Command::Operator(Operator::Seal(args)) => unseal::seal(&args, terminal),
        Command::Operator(Operator::Rekey(args)) => rekey::run(args, terminal),
        Command::Operator(Operator::GenerateRoot(args)) => generate_root::run(args, terminal),
        Command::Operator(Operator::Rotate(args)) => rotate::run(&args, terminal),
        Command::Operator(Operator::RecoverHsm(args)) => recover_hsm::run(&args, terminal),
        Command::Seal(command) => seal::run(&command, terminal),
        Command::Recovery(command) => recovery::run(&command, terminal),
        Command::Backup(command) => backup::run(&command, terminal),
        Command::Hsm(HsmCommand::Doctor(args)) => hsm::doctor(args, terminal),
        Command::Hsm(HsmCommand::Orphans(args)) => hsm::orphans(&args, terminal),
        Command::Hsm(HsmCommand::Bench(args)) => hsm::bench(args, terminal),
        Command::Version => version(program, terminal),
    }
}

fn finish(result: Result<u8, Failure>, terminal: &mut Terminal<'_>) -> u8 {
    result.unwrap_or_else(|failure| {
        terminal.complain(&failure.message);
        failure.code
    })
}

/// Clients that start a binary called `vault` read the second word of its version line as Vault's version.
fn version(program: &OsString, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let vault = crate::config::DEFAULT_VAULT_VERSION;
    let sos = env!("CARGO_PKG_VERSION");
    let named_vault = std::path::Path::new(program).file_name().is_some_and(|name| name == "vault");
    if named_vault {
        terminal.print(format!("Vault v{vault} (SOS v{sos})"))?;
    } else {
        terminal.print(format!("SOS v{sos} (speaks the API of Vault v{vault})"))?;
    }
    Ok(0)
}

/// Go's switches also take a value (`-reset=true`); clap's do not unless told.
fn lenient_switches(command: clap::Command) -> clap::Command {
    let lenient = |arg: clap::Arg| {
        if !matches!(arg.get_action(), ArgAction::SetTrue) {
            return arg;
        }
        arg.action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .default_value("false")
            .hide_default_value(true)
            .hide_possible_values(true)
            .value_parser(clap::builder::BoolishValueParser::new())
    };
    command.mut_args(lenient).mut_subcommands(lenient_switches)
}
