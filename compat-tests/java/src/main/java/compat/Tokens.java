package compat;

import static compat.Suite.refused;
import static compat.Suite.same;

import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.logging.Level;
import java.util.logging.Logger;

import org.springframework.scheduling.concurrent.ThreadPoolTaskScheduler;
import org.springframework.vault.VaultException;
import org.springframework.vault.authentication.ClientAuthentication;
import org.springframework.vault.authentication.LifecycleAwareSessionManager;
import org.springframework.vault.authentication.LifecycleAwareSessionManagerSupport.FixedTimeoutRefreshTrigger;
import org.springframework.vault.authentication.LoginToken;
import org.springframework.vault.authentication.TokenAuthentication;
import org.springframework.vault.client.VaultClients;
import org.springframework.vault.core.VaultTemplate;
import org.springframework.vault.core.VaultTokenOperations;
import org.springframework.vault.support.Policy;
import org.springframework.vault.support.Policy.BuiltinCapabilities;
import org.springframework.vault.support.VaultResponse;
import org.springframework.vault.support.VaultToken;
import org.springframework.vault.support.VaultTokenRequest;
import org.springframework.vault.support.VaultTokenResponse;

/** Tokens: made, renewed, revoked, and kept alive by Spring's session manager. */
final class Tokens {

	private Tokens() {
	}

	static VaultTokenRequest.VaultTokenRequestBuilder basic() {
		return VaultTokenRequest.builder().withPolicy("default");
	}

	private static String text(VaultToken token) {
		return token.getToken();
	}

	private static VaultResponse lookup(Suite s, VaultToken token) {
		return s.vault.write("auth/token/lookup", Map.of("token", text(token)));
	}

	static void run(Suite s) {
		VaultTokenOperations tokens = s.vault.opsForToken();
		s.check("create and look up", () -> {
			VaultTokenResponse made = tokens.create(basic().ttl(Duration.ofHours(1)).displayName("disk").meta(Map.of("rack", "7")).numUses(9).renewable().build());
			same("policies", made.getAuth().get("policies"), List.of("default"));
			same("lease", made.getAuth().get("lease_duration"), 3600);
			same("renewable", made.getAuth().get("renewable"), true);
			Map<String, Object> data = lookup(s, made.getToken()).getRequiredData();
			same("display name", data.get("display_name"), "token-disk");
			same("meta", data.get("meta"), Map.of("rack", "7"));
			same("uses", data.get("num_uses"), 9);
			tokens.revoke(made.getToken());
		});
		s.check("renew", () -> {
			VaultToken token = tokens.create(basic().ttl(Duration.ofMinutes(10)).renewable().build()).getToken();
			same("lease", tokens.renew(token).getAuth().get("lease_duration"), 600);
			tokens.revoke(token);
			refused(VaultException.class, "403", () -> lookup(s, token));
			refused(VaultException.class, "400", () -> tokens.renew(token));
		});
		s.check("revoking takes the children along, revoking as orphan does not", () -> {
			String policy = "compat-java-family-" + s.uid;
			s.vault.opsForSys().createOrUpdatePolicy(policy, Policy.of(Policy.Rule.builder().path("auth/token/create").capabilities(BuiltinCapabilities.CREATE, BuiltinCapabilities.UPDATE).build()));
			s.later(() -> s.vault.opsForSys().deletePolicy(policy));
			for (boolean keep : new boolean[] { false, true }) {
				VaultToken parent = tokens.create(VaultTokenRequest.builder().policies(List.of(policy, "default")).build()).getToken();
				VaultToken child = s.as(text(parent)).opsForToken().create(basic().build()).getToken();
				if (keep) {
					tokens.revokeOrphan(parent);
					same("orphan", lookup(s, child).getRequiredData().get("orphan"), true);
					tokens.revoke(child);
				} else {
					tokens.revoke(parent);
					refused(VaultException.class, "403", () -> lookup(s, child));
				}
			}
		});
		s.check("an orphan", () -> {
			VaultToken token = tokens.createOrphan(basic().build()).getToken();
			same("orphan", lookup(s, token).getRequiredData().get("orphan"), true);
			tokens.revoke(token);
		});
		s.check("bad tokens", () -> {
			refused(VaultException.class, "permission denied", () -> s.as("hvs.nonsense").read("auth/token/lookup-self"));
			tokens.revoke(VaultToken.of("hvs.nonsense"));
		});
	}

	/** Spring's session manager: it looks up a token given to it, and renews again and again, and finally revokes, one it logged in for. */
	static void session(Suite s) {
		s.check("the session manager looks a given token up", () -> {
			VaultToken token = s.vault.opsForToken().create(basic().ttl(Duration.ofMinutes(1)).renewable().build()).getToken();
			withManager(s, new TokenAuthentication(token), manager -> {
				same("renewable", manager.getSessionToken() instanceof LoginToken login && login.isRenewable(), true);
				same("renewed", manager.renewToken(), true);
				s.vault.opsForToken().revoke(token);
			});
		});
		s.check("the session manager keeps a 4 s login alive and revokes it", () -> {
			ClientAuthentication login = () -> {
				VaultToken made = s.vault.opsForToken().create(basic().ttl(Duration.ofSeconds(4)).renewable().build()).getToken();
				return LoginToken.renewable(made, Duration.ofSeconds(4));
			};
			withManager(s, login, manager -> {
				VaultTemplate client = new VaultTemplate(s.endpoint, s.http, manager);
				VaultToken token = manager.getSessionToken();
				Thread.sleep(7000);
				same("alive", client.read("auth/token/lookup-self").getRequiredData().get("id"), text(token));
				manager.destroy();
				refused(VaultException.class, "403", () -> lookup(s, token));
			});
		});
	}

	private interface ManagerBody {
		void run(LifecycleAwareSessionManager manager) throws Exception;
	}

	private static void withManager(Suite s, ClientAuthentication authentication, ManagerBody body) throws Exception {
		Logger.getLogger("org.springframework.vault").setLevel(Level.WARNING);
		ThreadPoolTaskScheduler scheduler = new ThreadPoolTaskScheduler();
		scheduler.initialize();
		try {
			body.run(new LifecycleAwareSessionManager(authentication, scheduler, VaultClients.createRestTemplate(s.endpoint, s.http),
					new FixedTimeoutRefreshTrigger(Duration.ofSeconds(2), Duration.ofSeconds(1))));
		} finally {
			scheduler.shutdown();
		}
	}
}
