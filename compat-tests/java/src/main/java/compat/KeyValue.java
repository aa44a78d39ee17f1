package compat;

import static compat.Suite.refused;
import static compat.Suite.same;
import static compat.Suite.soon;

import java.time.Duration;
import java.util.List;
import java.util.Map;

import org.springframework.vault.VaultException;
import org.springframework.vault.core.VaultKeyValueOperations;
import org.springframework.vault.core.VaultKeyValueOperationsSupport.KeyValueBackend;
import org.springframework.vault.core.VaultVersionedKeyValueOperations;
import org.springframework.vault.support.VaultMetadataRequest;
import org.springframework.vault.support.VaultMetadataResponse;
import org.springframework.vault.support.VaultResponse;
import org.springframework.vault.support.Versioned;
import org.springframework.vault.support.Versioned.Version;

/** The two versions of the KV engine. */
final class KeyValue {

	record Login(String user, int n) {
	}

	private KeyValue() {
	}

	static void version1(Suite s) {
		String path = s.mount("kv", Map.of("version", "1"));
		VaultKeyValueOperations kv = s.vault.opsForKeyValue(path, KeyValueBackend.KV_1);
		s.check("put and get", () -> {
			kv.put("app/db", Map.of("user", "u", "n", 7));
			VaultResponse got = kv.get("app/db");
			same("data", got.getRequiredData(), Map.of("user", "u", "n", 7));
			same("lease", got.getLeaseDuration(), 2764800L);
			same("typed", kv.get("app/db", Login.class).getRequiredData(), new Login("u", 7));
		});
		s.check("list", () -> {
			kv.put("app/cache", Map.of("k", "v"));
			same("keys", kv.list("app"), List.of("cache", "db"));
			same("top", kv.list(""), List.of("app/"));
			same("nothing", kv.list("nothing"), List.of());
		});
		s.check("a ttl becomes the lease", () -> {
			kv.put("ttl", Map.of("k", "v", "ttl", "30m"));
			same("lease", kv.get("ttl").getLeaseDuration(), 1800L);
		});
		s.check("delete, then nothing", () -> {
			kv.delete("app/db");
			same("gone", kv.get("app/db"), null);
		});
		s.check("generic write, read, delete", () -> {
			s.vault.write(path + "/g", Map.of("k", "v"));
			same("data", s.vault.read(path + "/g").getRequiredData(), Map.of("k", "v"));
			s.vault.delete(path + "/g");
			same("gone", s.vault.read(path + "/g"), null);
		});
	}

	static void version2(Suite s) {
		String path = s.mount("kv", Map.of("version", "2"));
		VaultVersionedKeyValueOperations kv = s.vault.opsForVersionedKeyValue(path);
		VaultKeyValueOperations plain = s.vault.opsForKeyValue(path, KeyValueBackend.KV_2);
		s.check("put and get versions", () -> {
			soon(() -> same("version", kv.put("app/db", Map.of("user", "u", "n", 7)).getVersion(), Version.from(1)));
			Versioned.Metadata second = kv.put("app/db", Map.of("user", "w", "n", 8));
			same("version", second.getVersion(), Version.from(2));
			same("created", second.getCreatedAt() != null, true);
			same("newest", kv.get("app/db").getRequiredData(), Map.of("user", "w", "n", 8));
			Versioned<Map<String, Object>> old = kv.get("app/db", Version.from(1));
			same("old", old.getRequiredData(), Map.of("user", "u", "n", 7));
			same("typed", kv.get("app/db", Login.class).getRequiredData(), new Login("w", 8));
		});
		s.check("check-and-set", () -> {
			refused(VaultException.class, "check-and-set parameter did not match the current version",
					() -> kv.put("app/db", Versioned.create(Map.of("user", "x"), Version.from(1))));
			same("version", kv.put("app/db", Versioned.create(Map.of("user", "x"), Version.from(2))).getVersion(), Version.from(3));
			refused(VaultException.class, "check-and-set", () -> kv.put("app/db", Versioned.create(Map.of("user", "y"), Version.unversioned())));
		});
		s.check("patch", () -> {
			same("patched", plain.patch("app/db", Map.of("more", "1")), true);
			same("data", kv.get("app/db").getRequiredData(), Map.of("user", "x", "more", "1"));
		});
		s.check("delete and undelete", () -> {
			kv.delete("app/db");
			Versioned<Map<String, Object>> gone = kv.get("app/db");
			same("data", gone.hasData(), false);
			same("deleted", gone.getRequiredMetadata().isDeleted(), true);
			same("version", gone.getVersion(), Version.from(4));
			kv.undelete("app/db", Version.from(4));
			same("data", kv.get("app/db").getRequiredData(), Map.of("user", "x", "more", "1"));
		});
		s.check("delete and destroy chosen versions", () -> {
			kv.delete("app/db", Version.from(1));
			kv.destroy("app/db", Version.from(2));
			same("deleted", kv.<Map<String, Object>>get("app/db", Version.from(1)).getRequiredMetadata().isDeleted(), true);
			same("destroyed", kv.<Map<String, Object>>get("app/db", Version.from(2)).getRequiredMetadata().isDestroyed(), true);
			same("absent", kv.get("app/db", Version.from(99)), null);
		});
		s.check("metadata", () -> {
			kv.opsForKeyValueMetadata().put("app/db", VaultMetadataRequest.builder().maxVersions(5).casRequired(true)
					.deleteVersionAfter(Duration.ofMinutes(90)).customMetadata(Map.of("owner", "ops")).build());
			VaultMetadataResponse meta = kv.opsForKeyValueMetadata().get("app/db");
			same("max", meta.getMaxVersions(), 5);
			same("cas", meta.isCasRequired(), true);
			same("after", meta.getDeleteVersionAfter(), Duration.ofMinutes(90));
			// Spring's own reading of this field stays empty, so it is asked for by the plain path.
			same("custom", s.vault.read(path + "/metadata/app/db").getRequiredData().get("custom_metadata"), Map.of("owner", "ops"));
			same("current", meta.getCurrentVersion(), 4);
			same("versions", meta.getVersions().size(), 4);
			refused(VaultException.class, "check-and-set parameter required for this call", () -> kv.put("app/db", Map.of("user", "y")));
		});
		s.check("list and delete everything", () -> {
			same("keys", kv.list("app"), List.of("db"));
			kv.opsForKeyValueMetadata().delete("app/db");
			same("gone", kv.get("app/db"), null);
			same("keys", kv.list("app"), List.of());
		});
		s.check("the question asked before reading a property source", () -> {
			Map<String, Object> data = s.vault.read("sys/internal/ui/mounts/" + path + "/app").getRequiredData();
			same("path", data.get("path"), path + "/");
			same("options", data.get("options"), Map.of("version", "2"));
		});
	}
}
