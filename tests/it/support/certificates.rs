//! Certificates for a server of PostgreSQL, made anew for each test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::scratch::Scratch;
use super::user::ServerUser;

/// An authority, a server's by it for `db.test` and an address, a client's, and a server's by nobody.
pub struct Certificates(Scratch);

impl Certificates {
    pub fn new(address: &str) -> Self {
        let place = Scratch::new();
        let openssl = |words: &str| {
            let mut openssl = Command::new("/usr/bin/openssl");
            openssl.args(words.split(' ')).current_dir(place.path());
            let output = openssl.output().expect("openssl runs");
            assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
        };
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        openssl(&format!("req -x509 {key} -keyout ca.key -out ca.crt -days 30 -subj /CN=authority"));
        openssl(&format!("req -x509 {key} -keyout other.key -out other.crt -days 30 -subj /CN=stranger"));
        for (name, subject, more) in [
            ("server", "db.test", format!("subjectAltName=DNS:db.test,IP:{address}\n")),
            ("client", "backup", String::new()),
        ] {
            openssl(&format!("req -new {key} -keyout {name}.key -out {name}.csr -subj /CN={subject}"));
            fs::write(place.join("ext"), format!("basicConstraints=CA:FALSE\n{more}")).expect("ours");
            openssl(&format!(
                "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -out {name}.crt -extfile ext"
            ));
        }
        // Signed by itself, as most clusters begin.
        openssl(&format!("req -x509 {key} -keyout self.key -out self.crt -days 30 -subj /CN=db.test"));
        Self(place)
    }

    /// Returns the path of one of the files: `ca.crt`, `client.key` and so on.
    pub fn at(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// Puts a server's certificate and key where the server reads them.
    pub fn install(&self, name: &str, data: &Path) {
        for (kind, place) in [("crt", "server.crt"), ("key", "server.key")] {
            let place: PathBuf = data.join(place);
            fs::copy(self.0.join(&format!("{name}.{kind}")), &place).expect("a data directory");
            fs::set_permissions(&place, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("ours");
            ServerUser::get().take_over(&place);
        }
        fs::copy(self.0.join("ca.crt"), data.join("root.crt")).expect("a data directory");
        ServerUser::get().take_over(&data.join("root.crt"));
    }

    /// Returns the path of one of the files, which the program under test may read as any user.
    pub fn readable(&self, name: &str) -> String {
        let path = self.0.join(name);
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("ours");
        ServerUser::get().take_over(self.0.path());
        path.display().to_string()
    }
}
