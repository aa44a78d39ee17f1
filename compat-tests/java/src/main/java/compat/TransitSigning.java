package compat;

import static compat.Suite.refused;
import static compat.Suite.same;

import java.util.Base64;
import java.util.List;
import java.util.Map;
import java.util.Set;

import org.springframework.vault.VaultException;
import org.springframework.vault.core.VaultTransitOperations;
import org.springframework.vault.support.Ciphertext;
import org.springframework.vault.support.Hmac;
import org.springframework.vault.support.Plaintext;
import org.springframework.vault.support.RawTransitKey;
import org.springframework.vault.support.Signature;
import org.springframework.vault.support.TransitKeyType;
import org.springframework.vault.support.VaultHmacRequest;
import org.springframework.vault.support.VaultSignRequest;
import org.springframework.vault.support.VaultSignatureVerificationRequest;
import org.springframework.vault.support.VaultTransitContext;
import org.springframework.vault.support.VaultTransitKeyConfiguration;
import org.springframework.vault.support.VaultTransitKeyCreationRequest;

/** Signatures, HMACs, exports, and the encrypting calls that Transit does not make. */
final class TransitSigning {

	private static final Plaintext TEXT = Plaintext.of("the disk's key");

	private TransitSigning() {
	}

	static void run(Suite s) {
		VaultTransitOperations transit = s.vault.opsForTransit(s.mount("transit", Map.of()));
		for (String type : List.of("ed25519", "ecdsa-p256", "ecdsa-p384", "ecdsa-p521", "rsa-2048", "rsa-3072", "rsa-4096")) {
			s.check("sign and verify with " + type, () -> {
				transit.createKey(type, VaultTransitKeyCreationRequest.ofKeyType(type));
				Signature signature = transit.sign(type, TEXT);
				same("prefix", signature.getSignature().startsWith("vault:v1:"), true);
				same("valid", transit.verify(type, TEXT, signature), true);
				same("other text", transit.verify(type, Plaintext.of("other"), signature), false);
				same("signing", transit.getKey(type).supportsSigning(), true);
			});
		}
		s.check("hash and signature algorithms, prehashed input", () -> {
			Plaintext digest = Plaintext.of(java.security.MessageDigest.getInstance("SHA-512").digest(TEXT.getPlaintext()));
			Signature signature = transit.sign("rsa-2048", VaultSignRequest.builder().plaintext(digest).prehashed(true).hashAlgorithm("sha2-512")
					.signatureAlgorithm("pkcs1v15").build());
			same("valid", transit.verify("rsa-2048", VaultSignatureVerificationRequest.builder().plaintext(TEXT).signature(signature)
					.hashAlgorithm("sha2-512").signatureAlgorithm("pkcs1v15").build()).isValid(), true);
			same("another padding", transit.verify("rsa-2048", VaultSignatureVerificationRequest.builder().plaintext(TEXT).signature(signature)
					.hashAlgorithm("sha2-512").signatureAlgorithm("pss").build()).isValid(), false);
		});
		s.check("HMACs", () -> {
			Hmac hmac = transit.getHmac("ecdsa-p256", TEXT);
			same("valid", transit.verify("ecdsa-p256", VaultSignatureVerificationRequest.builder().plaintext(TEXT).hmac(hmac).build()).isValid(), true);
			transit.rotate("ecdsa-p256");
			Hmac old = transit.getHmac("ecdsa-p256", VaultHmacRequest.builder().plaintext(TEXT).algorithm("sha2-512").keyVersion(1).build());
			same("prefix", old.getHmac().startsWith("vault:v1:"), true);
			same("valid", transit.verify("ecdsa-p256", VaultSignatureVerificationRequest.builder().plaintext(TEXT).hmac(old)
					.hashAlgorithm("sha2-512").build()).isValid(), true);
			same("other text", transit.verify("ecdsa-p256", VaultSignatureVerificationRequest.builder().plaintext(Plaintext.of("other")).hmac(old)
					.hashAlgorithm("sha2-512").build()).isValid(), false);
		});
		s.check("exports", () -> {
			transit.createKey("open", VaultTransitKeyCreationRequest.builder().type("aes256-gcm96").exportable(true).allowPlaintextBackup(true).build());
			transit.rotate("open");
			RawTransitKey key = transit.exportKey("open", TransitKeyType.ENCRYPTION_KEY);
			same("name", key.getName(), "open");
			same("versions", key.getKeys().keySet(), Set.of("1", "2"));
			same("bytes", Base64.getDecoder().decode(key.getKeys().get("2")).length, 32);
			same("hmac key", Base64.getDecoder().decode(transit.exportKey("open", TransitKeyType.HMAC_KEY).getKeys().get("1")).length, 32);
			same("backup", transit.getKey("open").allowPlaintextBackup() && transit.getKey("open").isExportable(), true);
			transit.createKey("signer", VaultTransitKeyCreationRequest.builder().type("ecdsa-p256").exportable(true).build());
			same("signing key", transit.exportKey("signer", TransitKeyType.SIGNING_KEY).getKeys().get("1").startsWith("-----BEGIN EC PRIVATE KEY"), true);
			refused(VaultException.class, "private key material is not exportable", () -> transit.exportKey("rsa-2048", TransitKeyType.SIGNING_KEY));
		});
		s.check("RSA encrypts and rewraps", () -> {
			Ciphertext sealed = transit.encrypt("rsa-2048", TEXT);
			same("plaintext", transit.decrypt("rsa-2048", sealed).asString(), TEXT.asString());
			transit.rotate("rsa-2048");
			same("prefix", transit.rewrap("rsa-2048", sealed.getCiphertext()).startsWith("vault:v2:"), true);
		});
		s.check("rewrap with a context, least versions", () -> {
			transit.createKey("derived", VaultTransitKeyCreationRequest.builder().type("aes256-gcm96").derived(true).build());
			VaultTransitContext context = VaultTransitContext.fromContext(new byte[] { 7 });
			String sealed = transit.encrypt("derived", new byte[] { 1 }, context);
			transit.rotate("derived");
			String fresh = transit.rewrap("derived", sealed, context);
			same("plaintext", transit.decrypt("derived", fresh, context)[0], (byte) 1);
			transit.configureKey("derived", VaultTransitKeyConfiguration.builder().minEncryptionVersion(2).build());
			same("least", transit.getKey("derived").getMinEncryptionVersion(), 2);
			refused(VaultException.class, "less than the minimum encryption key version", () -> transit.encrypt("derived", new byte[] { 1 },
					VaultTransitContext.builder().context(new byte[] { 7 }).keyVersion(1).build()));
		});
		s.check("a key with every default", () -> {
			transit.createKey("plain");
			same("type", transit.getKey("plain").getType(), "aes256-gcm96");
		});
		s.check("bad input", () -> {
			refused(VaultException.class, "does not support signing", () -> transit.sign("plain", TEXT));
			refused(VaultException.class, "signing key not found", () -> transit.sign("nothing", TEXT));
			refused(VaultException.class, "message encryption not supported", () -> transit.encrypt("ecdsa-p256", "x"));
		});
	}
}
