package compat;

import java.net.URI;
import java.util.ArrayDeque;
import java.util.Deque;
import java.util.Map;
import java.util.Objects;
import java.util.UUID;

import org.springframework.core.io.FileSystemResource;
import org.springframework.http.client.ClientHttpRequestFactory;
import org.springframework.vault.authentication.SimpleSessionManager;
import org.springframework.vault.authentication.TokenAuthentication;
import org.springframework.vault.client.VaultEndpoint;
import org.springframework.vault.client.ClientHttpRequestFactoryFactory;
import org.springframework.vault.core.VaultTemplate;
import org.springframework.vault.support.ClientOptions;
import org.springframework.vault.support.SslConfiguration;
import org.springframework.vault.support.SslConfiguration.KeyStoreConfiguration;
import org.springframework.vault.support.VaultMount;

/** One group's run: a template with the token it was given, and names of its own. */
final class Suite implements AutoCloseable {

	interface Body {
		void run() throws Exception;
	}

	final String group;
	final String uid = UUID.randomUUID().toString().substring(0, 8);
	final VaultEndpoint endpoint = VaultEndpoint.from(URI.create(System.getenv("VAULT_ADDR")));
	final ClientHttpRequestFactory http = ClientHttpRequestFactoryFactory.create(new ClientOptions(), trust());
	final VaultTemplate vault = as(System.getenv("VAULT_TOKEN"));
	private final Deque<Body> undo = new ArrayDeque<>();
	int passed;
	int failed;

	Suite(String group) {
		this.group = group;
	}

	/** VAULT_CACERT names a PEM file, as for the other clients. */
	private static SslConfiguration trust() {
		String file = System.getenv("VAULT_CACERT");
		return file == null || file.isEmpty() ? SslConfiguration.unconfigured()
				: SslConfiguration.forTrustStore(KeyStoreConfiguration.of(new FileSystemResource(file)).withStoreType("PEM"));
	}

	VaultTemplate as(String token) {
		return new VaultTemplate(endpoint, http, new SimpleSessionManager(new TokenAuthentication(token)));
	}

	void check(String name, Body body) {
		try {
			body.run();
			passed++;
			System.out.println("ok   java/" + group + ": " + name);
		} catch (Exception | AssertionError problem) {
			failed++;
			System.out.println("FAIL java/" + group + ": " + name + ": " + String.valueOf(problem).replace("\n", "\\n"));
		}
	}

	void later(Body body) {
		undo.push(body);
	}

	/** Makes a secrets engine for this run alone and returns its path. */
	String mount(String type, Map<String, String> options) {
		String path = "compat-java-" + group + "-" + uid;
		check("mount " + type, () -> vault.opsForSys().mount(path, VaultMount.builder().type(type).options(options).build()));
		later(() -> vault.opsForSys().unmount(path));
		return path;
	}

	@Override
	public void close() {
		for (Body body : undo) {
			try {
				body.run();
			} catch (Exception gone) {
				// What a failed check did not make cannot be removed.
			}
		}
	}

	static void same(String what, Object got, Object expected) {
		if (!Objects.equals(got, expected)) {
			throw new AssertionError(what + ": expected " + expected + ", got " + got);
		}
	}

	/** Demands this kind of exception with this text in its message. */
	static void refused(Class<? extends Exception> kind, String text, Body body) throws Exception {
		try {
			body.run();
		} catch (Exception problem) {
			if (kind.isInstance(problem) && String.valueOf(problem.getMessage()).contains(text)) {
				return;
			}
			throw new AssertionError("expected " + kind.getSimpleName() + " with \"" + text + "\", got " + problem, problem);
		}
		throw new AssertionError("expected " + kind.getSimpleName() + " with \"" + text + "\", got no exception");
	}

	/** Repeats what a server refuses only in the first moment after a mount. */
	static void soon(Body body) throws Exception {
		for (int i = 0;; i++) {
			try {
				body.run();
				return;
			} catch (Exception problem) {
				if (i == 100 || !String.valueOf(problem.getMessage()).contains("Upgrading from non-versioned")) {
					throw problem;
				}
				Thread.sleep(50);
			}
		}
	}
}
