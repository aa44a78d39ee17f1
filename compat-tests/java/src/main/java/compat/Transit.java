package compat;

import static compat.Suite.refused;
import static compat.Suite.same;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;

import org.springframework.vault.VaultException;
import org.springframework.vault.core.VaultTransitOperations;
import org.springframework.vault.support.Ciphertext;
import org.springframework.vault.support.Plaintext;
import org.springframework.vault.support.VaultDecryptionResult;
import org.springframework.vault.support.VaultEncryptionResult;
import org.springframework.vault.support.VaultTransitContext;
import org.springframework.vault.support.VaultTransitKey;
import org.springframework.vault.support.VaultTransitKeyConfiguration;
import org.springframework.vault.support.VaultTransitKeyCreationRequest;

/** Keys and encryption under them. */
final class Transit {

	private Transit() {
	}

	static void run(Suite s) {
		VaultTransitOperations transit = s.vault.opsForTransit(s.mount("transit", Map.of()));
		for (String type : List.of("aes128-gcm96", "aes256-gcm96", "chacha20-poly1305")) {
			s.check("round trip with " + type, () -> {
				transit.createKey(type, VaultTransitKeyCreationRequest.ofKeyType(type));
				String sealed = transit.encrypt(type, "the disk's key");
				same("prefix", sealed.startsWith("vault:v1:"), true);
				same("plaintext", transit.decrypt(type, sealed), "the disk's key");
			});
		}
		s.check("read and list keys", () -> {
			VaultTransitKey key = transit.getKey("aes256-gcm96");
			same("name", key.getName(), "aes256-gcm96");
			same("type", key.getType(), "aes256-gcm96");
			same("latest", key.getLatestVersion(), 1);
			same("versions", key.getKeys().keySet(), java.util.Set.of("1"));
			same("exportable", key.isExportable(), false);
			same("encryption", key.supportsEncryption() && key.supportsDecryption() && key.supportsDerivation(), true);
			same("signing", key.supportsSigning(), false);
			same("keys", transit.getKeys(), List.of("aes128-gcm96", "aes256-gcm96", "chacha20-poly1305"));
			same("nothing", transit.getKey("nothing"), null);
		});
		s.check("rotate, rewrap, minimum version", () -> {
			String old = transit.encrypt("aes256-gcm96", "x");
			transit.rotate("aes256-gcm96");
			String fresh = transit.rewrap("aes256-gcm96", old);
			same("prefix", fresh.startsWith("vault:v2:"), true);
			same("old", transit.decrypt("aes256-gcm96", old), "x");
			same("new", transit.decrypt("aes256-gcm96", fresh), "x");
			transit.configureKey("aes256-gcm96", VaultTransitKeyConfiguration.builder().minDecryptionVersion(2).build());
			refused(VaultException.class, "disallowed by policy (too old)", () -> transit.decrypt("aes256-gcm96", old));
		});
		s.check("batches", () -> {
			List<Plaintext> disks = new ArrayList<>();
			for (int i = 0; i < 50; i++) {
				disks.add(Plaintext.of("disk " + i));
			}
			List<Ciphertext> sealed = transit.encrypt("aes256-gcm96", disks).stream().map(VaultEncryptionResult::get).toList();
			List<VaultDecryptionResult> opened = transit.decrypt("aes256-gcm96", sealed);
			same("count", opened.size(), 50);
			same("last", opened.get(49).getAsString(), "disk 49");
			same("rewrapped", transit.rewrap("aes256-gcm96", sealed.subList(0, 3)).stream().allMatch(VaultEncryptionResult::isSuccessful), true);
		});
		s.check("a batch with one bad item", () -> {
			Ciphertext good = transit.encrypt("aes256-gcm96", Plaintext.of("x"));
			refused(VaultException.class, "400", () -> transit.decrypt("aes256-gcm96", List.of(good, Ciphertext.of("vault:v2:AAAA"))));
		});
		s.check("derived and convergent", () -> {
			transit.createKey("conv", VaultTransitKeyCreationRequest.builder().type("aes256-gcm96").derived(true).convergentEncryption(true).build());
			VaultTransitContext context = VaultTransitContext.fromContext("rack 7".getBytes(StandardCharsets.UTF_8));
			byte[] plain = "x".getBytes(StandardCharsets.UTF_8);
			String a = transit.encrypt("conv", plain, context);
			same("convergent", transit.encrypt("conv", plain, context), a);
			same("plaintext", new String(transit.decrypt("conv", a, context), StandardCharsets.UTF_8), "x");
			same("convergent key", transit.getKey("conv").supportsConvergentEncryption(), true);
			refused(VaultException.class, "missing 'context' for key derivation", () -> transit.encrypt("conv", "x"));
		});
		s.check("an old version on request", () -> {
			transit.rotate("chacha20-poly1305");
			String sealed = transit.encrypt("chacha20-poly1305", new byte[] { 1 }, VaultTransitContext.builder().keyVersion(1).build());
			same("prefix", sealed.startsWith("vault:v1:"), true);
		});
		s.check("bad input", () -> {
			refused(VaultException.class, "encryption key not found", () -> transit.decrypt("nothing", "vault:v1:AAAA"));
			refused(VaultException.class, "invalid ciphertext: no prefix", () -> transit.decrypt("aes256-gcm96", "AAAA"));
		});
		s.check("delete a key", () -> {
			refused(VaultException.class, "deletion is not allowed for this key", () -> transit.deleteKey("conv"));
			transit.configureKey("conv", VaultTransitKeyConfiguration.builder().deletionAllowed(true).build());
			transit.deleteKey("conv");
			same("gone", transit.getKey("conv"), null);
		});
	}
}
