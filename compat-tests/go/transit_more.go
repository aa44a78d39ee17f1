package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
)

// keys is a Transit mount, asked through Logical as Go programs do.
type keys struct {
	s     *suite
	mount string
}

func (k keys) write(path string, body map[string]any) (map[string]any, error) {
	secret, err := k.s.client.Logical().Write(k.mount+"/"+path, body)
	if err != nil || secret == nil {
		return nil, err
	}
	return secret.Data, nil
}

func (k keys) read(path string, query map[string][]string) (map[string]any, error) {
	secret, err := k.s.client.Logical().ReadWithData(k.mount+"/"+path, query)
	if err != nil || secret == nil {
		return nil, err
	}
	return secret.Data, nil
}

// holds demands that an answer's member holds this value.
func (k keys) holds(path string, body map[string]any, member string, expected any) error {
	answer, err := k.write(path, body)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return want(path+" "+member, answer[member], expected)
}

var text = base64.StdEncoding.EncodeToString([]byte("the disk's key"))

func transitSigning(s *suite) {
	k := keys{s, s.mount("transit", nil)}
	for _, kind := range []string{"ed25519", "ecdsa-p256", "ecdsa-p384", "ecdsa-p521", "rsa-2048", "rsa-3072", "rsa-4096"} {
		s.check("sign and verify with "+kind, func() error {
			if _, err := k.write("keys/"+kind, map[string]any{"type": kind}); err != nil {
				return err
			}
			signed, err := k.write("sign/"+kind, map[string]any{"input": text})
			if err != nil {
				return err
			}
			return first(want("version", signed["key_version"], 1),
				k.holds("verify/"+kind, map[string]any{"input": text, "signature": signed["signature"]}, "valid", true),
				k.holds("verify/"+kind, map[string]any{"input": "b3RoZXI=", "signature": signed["signature"]}, "valid", false))
		})
	}
	s.check("hash algorithm in the path, marshaling, padding and salt", func() error {
		for _, one := range []struct {
			path string
			body map[string]any
		}{
			{"ecdsa-p384/sha2-384", map[string]any{"marshaling_algorithm": "jws"}},
			{"rsa-2048/sha2-512", map[string]any{"signature_algorithm": "pss", "salt_length": "hash"}},
			{"rsa-2048/sha3-256", map[string]any{"signature_algorithm": "pkcs1v15"}},
		} {
			one.body["input"] = text
			signed, err := k.write("sign/"+one.path, one.body)
			if err != nil {
				return fmt.Errorf("%s: %w", one.path, err)
			}
			one.body["signature"] = signed["signature"]
			if err := k.holds("verify/"+one.path, one.body, "valid", true); err != nil {
				return err
			}
		}
		return nil
	})
	s.check("batches of signatures", func() error {
		items := []any{}
		for i := range 100 {
			items = append(items, map[string]any{"input": base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "disk %d", i)), "reference": fmt.Sprint(i)})
		}
		signed, err := k.write("sign/ecdsa-p256", map[string]any{"batch_input": items})
		if err != nil {
			return err
		}
		for i, result := range signed["batch_results"].([]any) {
			items[i].(map[string]any)["signature"] = result.(map[string]any)["signature"]
		}
		verified, err := k.write("verify/ecdsa-p256", map[string]any{"batch_input": items})
		if err != nil {
			return err
		}
		last := verified["batch_results"].([]any)[99].(map[string]any)
		return first(want("valid", last["valid"], true), want("reference", last["reference"], "99"))
	})
	s.check("HMACs", func() error {
		if _, err := k.write("keys/mac", map[string]any{"type": "hmac", "key_size": 64}); err != nil {
			return err
		}
		for _, name := range []string{"mac", "rsa-2048"} {
			made, err := k.write("hmac/"+name+"/sha2-512", map[string]any{"input": text})
			if err != nil {
				return err
			}
			if err := k.holds("verify/"+name+"/sha2-512", map[string]any{"input": text, "hmac": made["hmac"]}, "valid", true); err != nil {
				return err
			}
		}
		return nil
	})
	s.check("hashes and random bytes", func() error {
		random, err := k.write("random/33", map[string]any{"format": "hex"})
		if err != nil {
			return err
		}
		return first(want("bytes", len(random["random_bytes"].(string)), 66),
			k.holds("hash/sha2-256", map[string]any{"input": "YQ=="}, "sum", "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"))
	})
	s.check("requests for certificates", func() error {
		made, err := k.write("keys/ecdsa-p256/csr", nil)
		if err != nil {
			return err
		}
		_, junk := k.write("keys/ecdsa-p256/set-certificate", map[string]any{"certificate_chain": "junk"})
		return first(want("csr", strings.HasPrefix(made["csr"].(string), "-----BEGIN CERTIFICATE REQUEST-----"), true), refused(junk, 400, "PEM"))
	})
	s.check("bad input", func() error {
		_, noKey := k.write("sign/nothing", map[string]any{"input": text})
		_, notSigning := k.write("sign/mac", map[string]any{"input": text})
		_, noPrefix := k.write("verify/ecdsa-p256", map[string]any{"input": text, "signature": "AAAA"})
		return first(refused(noKey, 400, "signing key not found"), refused(notSigning, 400, "does not support signing"),
			refused(noPrefix, 400, "invalid signature: no prefix"))
	})
}

func transitLifecycle(s *suite) {
	k := keys{s, s.mount("transit", nil)}
	exportable := func(kind string) map[string]any {
		return map[string]any{"type": kind, "exportable": true, "allow_plaintext_backup": true}
	}
	for kind, export := range map[string]string{"aes256-gcm96": "encryption-key", "rsa-2048": "signing-key", "ecdsa-p256": "signing-key", "ed25519": "signing-key"} {
		s.check("export, backup and restore of "+kind, func() error {
			if _, err := k.write("keys/"+kind, exportable(kind)); err != nil {
				return err
			}
			if _, err := k.write("keys/"+kind+"/rotate", nil); err != nil {
				return err
			}
			before, err := k.read("export/"+export+"/"+kind, nil)
			if err != nil {
				return err
			}
			backup, err := k.read("backup/"+kind, nil)
			if err != nil {
				return err
			}
			if _, err := k.write("restore/"+kind+"-2", map[string]any{"backup": backup["backup"]}); err != nil {
				return err
			}
			after, err := k.read("export/"+export+"/"+kind+"-2", nil)
			if err != nil {
				return err
			}
			latest, err := k.read("export/"+export+"/"+kind+"/latest", nil)
			_, again := k.write("restore/"+kind, map[string]any{"backup": backup["backup"]})
			return first(err, want("keys", after["keys"], before["keys"]), want("versions", len(before["keys"].(map[string]any)), 2),
				want("latest", len(latest["keys"].(map[string]any)), 1), refused(again, 500, "already exists"))
		})
	}
	s.check("what is not exportable stays", func() error {
		if _, err := k.write("keys/closed", nil); err != nil {
			return err
		}
		_, export := k.read("export/encryption-key/closed", nil)
		_, backup := k.read("backup/closed", nil)
		return first(refused(export, 400, "private key material is not exportable"), refused(backup, 500, "exporting is disallowed on the policy"))
	})
	s.check("from one key to another through the wrapping key", func() error {
		wrapping, err := k.read("wrapping_key", nil)
		if err != nil {
			return err
		}
		public := map[string]any{"type": "rsa-4096", "public_key": wrapping["public_key"]}
		if _, err := k.write("keys/elsewhere/import", public); err != nil {
			return err
		}
		wrapped, err := k.read("byok-export/elsewhere/ecdsa-p256", nil)
		if err != nil {
			return err
		}
		versions := wrapped["keys"].(map[string]any)
		if _, err := k.write("keys/imported/import", map[string]any{"type": "ecdsa-p256", "ciphertext": versions["1"]}); err != nil {
			return err
		}
		if _, err := k.write("keys/imported/import_version", map[string]any{"ciphertext": versions["2"]}); err != nil {
			return err
		}
		signed, err := k.write("sign/ecdsa-p256", map[string]any{"input": text})
		if err != nil {
			return err
		}
		imported, err := k.read("keys/imported", nil)
		return first(err, want("imported", imported["imported_key"], true), want("latest", imported["latest_version"], 2),
			k.holds("verify/imported", map[string]any{"input": text, "signature": signed["signature"]}, "valid", true))
	})
	s.check("trim", func() error {
		_, early := k.write("keys/aes256-gcm96/trim", map[string]any{"min_available_version": 2})
		if _, err := k.write("keys/aes256-gcm96/config", map[string]any{"min_decryption_version": 2, "min_encryption_version": 2}); err != nil {
			return err
		}
		return first(refused(early, 400, ""), k.holds("keys/aes256-gcm96/trim", map[string]any{"min_available_version": 2}, "min_available_version", 2))
	})
	s.check("rotation by age", func() error {
		if _, err := k.write("keys/aged", map[string]any{"auto_rotate_period": "24h"}); err != nil {
			return err
		}
		key, err := k.read("keys/aged", nil)
		_, short := k.write("keys/aged/config", map[string]any{"auto_rotate_period": "1m"})
		return first(err, want("period", key["auto_rotate_period"], json.Number("86400")), refused(short, 400, "at least an hour"))
	})
	s.check("settings of the mount", func() error {
		if _, err := k.write("cache-config", map[string]any{"size": 500}); err != nil {
			return err
		}
		cache, err := k.read("cache-config", nil)
		if err != nil {
			return err
		}
		if _, err := k.write("config/keys", map[string]any{"disable_upsert": true}); err != nil {
			return err
		}
		settings, err := k.read("config/keys", nil)
		_, upsert := k.write("encrypt/new", map[string]any{"plaintext": text})
		return first(err, want("size", cache["size"], 500), want("disable_upsert", settings["disable_upsert"], true), refused(upsert, 400, "encryption key not found"))
	})
}
