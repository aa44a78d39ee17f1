//! The development server: in memory, initialised, unsealed, with `secret/` as KV version 2.

use std::{fs, io::Write, os::unix::fs::OpenOptionsExt, path::PathBuf, sync::Arc, time::Duration};

use super::{StartError, dev_tls::DevCertificates};
use crate::{
    cli::ServerArgs,
    core::{Core, mount_table::new_entry, mounts::Table},
    hsm::{Hsm, Status},
    seal::wire::InitRequest,
};

/// How long the throw-away token may take to come up.
const HSM_PATIENCE: Duration = Duration::from_secs(15);

/// Waits until the HSM is usable; without one there is nothing to wait for.
pub async fn wait_for(hsm: &Arc<dyn Hsm>) -> Result<(), String> {
    let mut changes = hsm.subscribe();
    let usable = async {
        loop {
            match hsm.status() {
                Status::Ready(_) => return Ok(()),
                Status::Down { reason, detail } => return Err(format!("{}: {detail}", reason.word())),
                Status::Starting => {}
            }
            if changes.changed().await.is_err() {
                return Err("the HSM client ended".to_owned());
            }
        }
    };
    tokio::time::timeout(HSM_PATIENCE, usable).await.unwrap_or_else(|_| Err("it does not answer".to_owned()))
}

/// Initialises the empty cluster and shows the one share and the root token, once, on the terminal that asked.
pub async fn initialise(
    core: &Arc<Core>,
    args: &ServerArgs,
    urls: &[String],
    certificates: Option<&DevCertificates>,
) -> Result<(), StartError> {
    let with_hsm = core.services.hsm.as_ref().is_some_and(|hsm| hsm.in_use());
    let mut request = InitRequest::default();
    if with_hsm {
        (request.recovery_shares, request.recovery_threshold) = (1, 1);
    } else {
        (request.secret_shares, request.secret_threshold) = (1, 1);
    }
    let failed =
        |error: crate::seal::SealError| StartError::Settings(format!("the development server cannot be initialised: {error}"));
    let made = core.seal.init(request, core.clock.now()).await.map_err(failed)?;
    let active = core.active()?;
    let root = match &args.dev_root_token_id {
        Some(chosen) => active.tokens.create_root(Some(chosen.expose().to_owned().into())).await?,
        None => made.root_token.clone().into(),
    };
    let mut entry = new_entry(Table::Secret, "secret/", "kv");
    entry.description = "key/value secret storage".into();
    entry.options.insert("version".into(), "2".into());
    if let Err(failure) = active.mounts.mount(core, entry).await {
        tracing::error!(error = ?failure, "secret/ could not be mounted");
    }

    let address = urls.first().map_or("", String::as_str);
    let share = made.keys_base64.first().or(made.recovery_keys_base64.first()).map_or("", String::as_str);
    let kind = if with_hsm { "Escrow share" } else { "Unseal Key" };
    let trust =
        certificates.map_or_else(String::new, |made| format!("    $ export VAULT_CACERT='{}'\n", made.authority().display()));
    let text = format!(
        "WARNING! dev mode is enabled! The server runs entirely in-memory, starts unsealed with a single {kind} and loses everything \
         when it ends. Development mode should NOT be used in production installations!\n\n\
         You may need to set the following environment variables:\n\n    $ export VAULT_ADDR='{address}'\n{trust}\n\
         {kind}: {share}\nRoot Token: {}\n\nDevelopment mode should NOT be used in production installations!\n",
        root.expose()
    );
    let mut out = std::io::stdout().lock();
    if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        tracing::warn!(%error, "the root token could not be shown");
    }
    if !args.dev_no_store_token
        && let Err(error) = store_token(root.expose())
    {
        tracing::warn!(%error, "the root token could not be written to ~/.vault-token");
    }
    Ok(())
}

/// `~/.vault-token`, where Vault's command line looks for it.
fn store_token(token: &str) -> std::io::Result<()> {
    let Some(home) = std::env::var_os("HOME") else { return Ok(()) };
    let path = PathBuf::from(home).join(".vault-token");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(token.as_bytes())
}
