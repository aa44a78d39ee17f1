//! `sys/generate-root`: a root token for whoever holds enough shares.

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};

use super::progress::Collected;
use super::rekey::{already_provided, check_nonce};
use super::wire::{GenerateRootRequest, GenerateRootResponse, ShareRequest};
use super::{Seal, SealError, shamir};
use crate::secret::{SecretBytes, SecretString, random_array};

/// Length of a one-time pad: that of a root token, `hvs.` and 24 characters.
pub const OTP_LENGTH: usize = 28;

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A root generation under way.
pub(super) struct RootGeneration {
    otp: SecretString,
    entered: Collected,
}

impl Seal {
    /// `GET sys/generate-root/attempt`.
    pub fn generate_root_status(&self) -> Result<GenerateRootResponse, SealError> {
        let (record, _) = self.open_record()?;
        let state = self.state.lock();
        let under_way = state.root.as_ref();
        Ok(GenerateRootResponse {
            nonce: under_way.map(|root| root.entered.nonce().to_owned()).unwrap_or_default(),
            started: under_way.is_some(),
            progress: under_way.map_or(0, |root| root.entered.len()),
            required: record.threshold,
            complete: false,
            encoded_token: String::new(),
            encoded_root_token: String::new(),
            pgp_fingerprint: String::new(),
            otp: String::new(),
            otp_length: OTP_LENGTH,
        })
    }

    /// `PUT sys/generate-root/attempt`.
    pub fn generate_root_start(&self, request: &GenerateRootRequest) -> Result<GenerateRootResponse, SealError> {
        self.open_record()?;
        if !request.pgp_key.is_empty() {
            return Err(SealError::invalid("PGP keys are not supported"));
        }
        let made = request.otp.is_empty().then(random_otp);
        let otp = made.as_ref().unwrap_or(&request.otp);
        if otp.expose().len() != OTP_LENGTH {
            return Err(SealError::invalid("OTP string has incorrect length"));
        }
        {
            let mut state = self.state.lock();
            if state.root.is_some() {
                return Err(SealError::invalid("root generation already in progress"));
            }
            state.root = Some(RootGeneration { otp: otp.duplicate(), entered: Collected::new() });
        }
        let mut status = self.generate_root_status()?;
        if let Some(otp) = made {
            otp.expose().clone_into(&mut status.otp);
        }
        Ok(status)
    }

    /// `DELETE sys/generate-root/attempt`.
    pub fn generate_root_cancel(&self) -> Result<(), SealError> {
        self.open_record()?;
        self.state.lock().root = None;
        Ok(())
    }

    /// `PUT sys/generate-root/update`: one share; the encoded token when it was the last one needed.
    pub async fn generate_root_update(&self, request: ShareRequest) -> Result<GenerateRootResponse, SealError> {
        let _working = self.working.lock().await;
        let share = shamir::decode(&request.key)?;
        let (record, _) = self.open_record()?;
        let (progress, entered) = self.enter_root_share(&request.nonce, share, record.threshold)?;
        let mut response = self.generate_root_status()?;
        response.progress = progress;
        response.otp_length = 0;
        let Some((shares, otp)) = entered else { return Ok(response) };
        let secret =
            shamir::combine(&shares).map_err(|text| SealError::Invalid(format!("failed to compute root key: {text}")))?;
        self.prove_secret(&record, &secret).map_err(|_wrong| SealError::invalid("root generation aborted: invalid key"))?;
        let encoded = self.make_encoded_token(&otp).await?;
        self.state.lock().root = None;
        tracing::warn!("a root token was made with generate-root");
        response.complete = true;
        response.encoded_token.clone_from(&encoded);
        response.encoded_root_token = encoded;
        Ok(response)
    }

    #[allow(clippy::type_complexity)] // the shares with the pad they are for; used once
    fn enter_root_share(
        &self,
        nonce: &str,
        share: SecretBytes,
        required: u8,
    ) -> Result<(usize, Option<(Vec<SecretBytes>, SecretString)>), SealError> {
        let mut state = self.state.lock();
        let root = state.root.as_mut().ok_or_else(|| SealError::invalid("no root generation in progress"))?;
        check_nonce(nonce, root.entered.nonce(), "root generation")?;
        if !root.entered.add(share) {
            return Err(already_provided("generation"));
        }
        let progress = root.entered.len();
        let otp = root.otp.duplicate();
        Ok((progress, root.entered.take_if(required).map(|shares| (shares, otp))))
    }

    async fn make_encoded_token(&self, otp: &SecretString) -> Result<String, SealError> {
        let host = self.host.get().ok_or_else(|| SealError::Internal("no token store is attached".into()))?;
        let token = host.make_root_token().await.map_err(SealError::Host)?;
        match encode_token(token.expose(), otp.expose()) {
            Some(encoded) => Ok(encoded),
            None => {
                host.revoke_root_token(&token).await;
                Err(SealError::Internal("the token is not as long as the one-time pad".into()))
            }
        }
    }
}

/// Token XOR pad, in base64 without padding; `None` when their lengths differ.
fn encode_token(token: &str, otp: &str) -> Option<String> {
    if token.len() != otp.len() {
        return None;
    }
    let mixed: Vec<u8> = token.bytes().zip(otp.bytes()).map(|(token, pad)| token ^ pad).collect();
    Some(STANDARD_NO_PAD.encode(mixed))
}

fn random_otp() -> SecretString {
    let mut otp = String::with_capacity(OTP_LENGTH);
    while otp.len() < OTP_LENGTH {
        let [byte] = random_array::<1>();
        // 248 is the largest multiple of 62 in a byte; what lies above would favour some characters.
        if byte < 248 {
            otp.push(char::from(BASE62[usize::from(byte % 62)]));
        }
    }
    SecretString::new(otp)
}
