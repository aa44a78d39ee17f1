package compat;

import static compat.Suite.refused;
import static compat.Suite.same;

import java.time.Duration;
import java.util.Map;

import org.springframework.vault.VaultException;
import org.springframework.vault.core.VaultSysOperations;
import org.springframework.vault.core.VaultTemplate;
import org.springframework.vault.core.VaultWrappingOperations;
import org.springframework.vault.support.Policy;
import org.springframework.vault.support.Policy.BuiltinCapabilities;
import org.springframework.vault.support.VaultMount;
import org.springframework.vault.support.VaultToken;
import org.springframework.vault.support.VaultTokenRequest;
import org.springframework.vault.support.VaultUnsealStatus;
import org.springframework.vault.support.WrappedMetadata;

/** Policies, response wrapping and the server's own endpoints. */
final class Server {

	private Server() {
	}

	static void policies(Suite s) {
		String path = s.mount("kv", Map.of("version", "1"));
		String name = "compat-java-rules-" + s.uid;
		VaultSysOperations sys = s.vault.opsForSys();
		Policy policy = Policy.of(
				Policy.Rule.builder().path(path + "/app/*").capabilities(BuiltinCapabilities.CREATE, BuiltinCapabilities.READ, BuiltinCapabilities.UPDATE).build(),
				Policy.Rule.builder().path(path + "/app/locked").capability(BuiltinCapabilities.DENY).build(),
				Policy.Rule.builder().path(path + "/wrapped/*").capability(BuiltinCapabilities.READ).minWrappingTtl(Duration.ofSeconds(60)).build());
		s.check("policies: write, read, list, delete", () -> {
			sys.createOrUpdatePolicy(name, policy);
			s.later(() -> sys.deletePolicy(name));
			same("rules", sys.getPolicy(name), policy);
			same("listed", sys.getPolicyNames().contains(name), true);
			sys.createOrUpdatePolicy(name + "-extra", policy);
			sys.deletePolicy(name + "-extra");
			same("gone", sys.getPolicy(name + "-extra"), null);
		});
		VaultToken token = s.vault.opsForToken().create(VaultTokenRequest.builder().withPolicy(name).build()).getToken();
		s.later(() -> s.vault.opsForToken().revoke(token));
		VaultTemplate client = s.as(token.getToken());
		s.check("allowed", () -> {
			client.write(path + "/app/a", Map.of("k", "v"));
			same("data", client.read(path + "/app/a").getRequiredData(), Map.of("k", "v"));
		});
		s.check("refused", () -> {
			refused(VaultException.class, "permission denied", () -> client.read(path + "/app/locked"));
			refused(VaultException.class, "permission denied", () -> client.delete(path + "/app/a"));
			refused(VaultException.class, "permission denied", () -> client.write(path + "/other", Map.of("k", "v")));
			refused(VaultException.class, "permission denied", () -> client.opsForSys().getMounts());
			refused(VaultException.class, "permission denied", () -> client.read(path + "/wrapped/a"));
		});
	}

	static void wrapping(Suite s) {
		VaultWrappingOperations wrapping = s.vault.opsForWrapping();
		s.check("wrap, look up, rewrap, read, not twice", () -> {
			WrappedMetadata wrapped = wrapping.wrap(Map.of("dek", "x"), Duration.ofMinutes(5));
			same("ttl", wrapped.getTtl(), Duration.ofMinutes(5));
			same("path", wrapped.getPath(), "sys/wrapping/wrap");
			WrappedMetadata looked = wrapping.lookup(wrapped.getToken());
			same("looked up", looked.getTtl(), Duration.ofMinutes(5));
			WrappedMetadata again = wrapping.rewrap(wrapped.getToken());
			same("old token", wrapping.lookup(wrapped.getToken()), null);
			same("data", wrapping.read(again.getToken()).getRequiredData(), Map.of("dek", "x"));
			same("second use", wrapping.read(again.getToken()), null);
		});
		s.check("nonsense", () -> same("lookup", wrapping.lookup(VaultToken.of("hvs.nonsense")), null));
	}

	static void system(Suite s) {
		VaultSysOperations sys = s.vault.opsForSys();
		s.check("initialised, seal status, health", () -> {
			same("initialised", sys.isInitialized(), true);
			VaultUnsealStatus status = sys.getUnsealStatus();
			same("sealed", status.isSealed(), false);
			same("threshold", status.getSecretThreshold() > 0 && status.getSecretShares() >= status.getSecretThreshold(), true);
			same("health", sys.health().isInitialized() && !sys.health().isSealed() && !sys.health().isStandby(), true);
			same("version", sys.health().getVersion().isEmpty(), false);
		});
		s.check("mounts", () -> {
			String path = "compat-java-mount-" + s.uid;
			sys.mount(path, VaultMount.builder().type("kv").description("mine").config(Map.of("default_lease_ttl", "30m")).options(Map.of("version", "2")).build());
			s.later(() -> sys.unmount(path));
			VaultMount mount = sys.getMounts().get(path + "/");
			same("type", mount.getType(), "kv");
			same("description", mount.getDescription(), "mine");
			same("options", mount.getOptions(), Map.of("version", "2"));
			same("ttl", mount.getConfig().get("default_lease_ttl"), 1800);
			refused(VaultException.class, "path is already in use at", () -> sys.mount(path, VaultMount.create("kv")));
			sys.unmount(path);
			same("gone", sys.getMounts().containsKey(path + "/"), false);
		});
		s.check("auth mounts", () -> same("token", sys.getAuthMounts().get("token/").getType(), "token"));
		s.check("no handler", () -> refused(VaultException.class, "no handler for route", () -> s.vault.write("compat-java-nothing-" + s.uid + "/a", Map.of("a", 1))));
	}
}
