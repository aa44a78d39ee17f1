package compat;

import java.util.Map;
import java.util.TreeMap;
import java.util.function.Consumer;

/**
 * Runs the unmodified Spring Vault client against the server at VAULT_ADDR with the token in VAULT_TOKEN and checks that
 * it gets what it gets from Vault. Prints one line per check, then "N passed, N failed"; the exit status is 1 when a
 * check fails. Arguments name the groups to run.
 */
public final class Compat {

	private static final Map<String, Consumer<Suite>> GROUPS = new TreeMap<>(Map.of("kv1", KeyValue::version1, "kv2", KeyValue::version2,
			"transit", Transit::run, "transit-signing", TransitSigning::run, "token", Tokens::run, "session", Tokens::session, "policy", Server::policies, "wrapping", Server::wrapping, "sys", Server::system));

	private Compat() {
	}

	public static void main(String[] args) {
		if (System.getenv("VAULT_ADDR") == null || System.getenv("VAULT_TOKEN") == null) {
			System.err.println("set VAULT_ADDR and VAULT_TOKEN");
			System.exit(2);
		}
		int passed = 0;
		int failed = 0;
		for (String group : args.length > 0 ? args : GROUPS.keySet().toArray(new String[0])) {
			if (!GROUPS.containsKey(group)) {
				System.err.println("no group " + group);
				System.exit(2);
			}
			try (Suite suite = new Suite(group)) {
				try {
					GROUPS.get(group).accept(suite);
				} catch (Exception problem) {
					suite.check("preparing", () -> {
						throw problem;
					});
				}
				passed += suite.passed;
				failed += suite.failed;
			}
		}
		System.out.println(passed + " passed, " + failed + " failed");
		System.exit(failed > 0 || passed == 0 ? 1 : 0);
	}
}
