package compat;

import java.io.IOException;
import java.io.InputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.GeneralSecurityException;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.util.ArrayDeque;
import java.util.Deque;
import java.util.Map;
import java.util.Objects;
import java.util.UUID;

import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

import org.springframework.http.client.ClientHttpRequestFactory;
import org.springframework.http.client.JdkClientHttpRequestFactory;
import org.springframework.vault.authentication.SimpleSessionManager;
import org.springframework.vault.authentication.TokenAuthentication;
import org.springframework.vault.client.VaultEndpoint;
import org.springframework.vault.client.ClientHttpRequestFactoryFactory;
import org.springframework.vault.core.VaultTemplate;
import org.springframework.vault.support.ClientOptions;
import org.springframework.vault.support.SslConfiguration;
import org.springframework.vault.support.VaultMount;

/** One group's run: a template with the token it was given, and names of its own. */
final class Suite implements AutoCloseable {

	interface Body {
		void run() throws Exception;
	}

	final String group;
	final String uid = UUID.randomUUID().toString().substring(0, 8);
	final VaultEndpoint endpoint = VaultEndpoint.from(URI.create(System.getenv("VAULT_ADDR")));
	final ClientHttpRequestFactory http = client();
	final VaultTemplate vault = as(System.getenv("VAULT_TOKEN"));
	private final Deque<Body> undo = new ArrayDeque<>();
	int passed;
	int failed;

	Suite(String group) {
		this.group = group;
	}

	/** Spring's own choice of a client; with VAULT_CACERT (a PEM file) the JDK's newer one, the only one that needs no other library for that. */
	private static ClientHttpRequestFactory client() {
		String file = System.getenv("VAULT_CACERT");
		if (file == null || file.isEmpty()) {
			return ClientHttpRequestFactoryFactory.create(new ClientOptions(), SslConfiguration.unconfigured());
		}
		try (InputStream pem = Files.newInputStream(Path.of(file))) {
			KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
			store.load(null, null);
			store.setCertificateEntry("ca", CertificateFactory.getInstance("X.509").generateCertificate(pem));
			TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
			trust.init(store);
			SSLContext tls = SSLContext.getInstance("TLS");
			tls.init(null, trust.getTrustManagers(), null);
			return new JdkClientHttpRequestFactory(HttpClient.newBuilder().sslContext(tls).build());
		} catch (GeneralSecurityException | IOException problem) {
			throw new IllegalStateException("VAULT_CACERT: " + file, problem);
		}
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
