//! `whrelay service`, with a systemctl that only writes down what it is asked.

use std::os::unix::fs::PermissionsExt;

use crate::{home, told};

#[test]
fn the_system_is_told_to_keep_it_running_and_to_stop() {
    let mut home = home();
    let bin = home.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let (asked, fake) = (home.path().join("asked"), bin.join("systemctl"));
    let script = "#!/bin/sh\necho \"$@\" >>\"$HOME/asked\"\n\
         case $2 in status) test -e \"$HOME/.config/systemd/user/shop.service\" || exit 4;; esac\n";
    std::fs::write(&fake, script).unwrap();
    std::fs::set_permissions(&fake, PermissionsExt::from_mode(0o755)).unwrap();
    home.set("PATH", &format!("{}:/usr/bin:/bin", bin.display()));
    std::fs::write(home.path().join("50% off.toml"), "").unwrap();
    home.set("WHRELAY_CONFIG", "50% off.toml");
    let service = |args: &[&str]| told(&home, &[&["service"], args].concat());
    assert_eq!(service(&["status", "--label", "shop"]).0, Some(3));
    let run = ["listen", "--to", "localhost:3000", "-H", "X-Rate: 50% off"];
    let (done, said) = service(&[&["install", "--label", "shop", "--"][..], &run].concat());
    assert_eq!(done, Some(0), "{said}");
    let unit = home.path().join(".config/systemd/user/shop.service");
    let unit = std::fs::read_to_string(unit).unwrap();
    let place = format!(
        "WHRELAY_CONFIG={}",
        home.path().join("50%% off.toml").display()
    );
    assert!(unit.contains(&place), "{unit}");
    let begins = "\"listen\" \"--to\" \"localhost:3000\" \"-H\" \"X-Rate: 50%% off\"";
    assert!(
        unit.contains(begins) && unit.contains("Restart=on-failure"),
        "{unit}"
    );
    assert_eq!(
        service(&["status", "--label", "shop"]),
        (Some(0), "shop running\n".into())
    );
    assert_eq!(service(&["uninstall", "--label", "shop"]).0, Some(0));
    // One that runs is begun anew as it is wanted now.
    let again = [&["install", "--label", "shop", "--"][..], &run].concat();
    assert_eq!(service(&again).0, Some(0));
    std::fs::write(&asked, "").unwrap();
    assert_eq!(service(&again).0, Some(0));
    let told = std::fs::read_to_string(&asked).unwrap();
    let (stopped, started) = (told.find("stop shop"), told.find("start shop"));
    assert!(stopped.is_some() && stopped < started, "{told}");
    assert_eq!(service(&["uninstall", "--label", "shop"]).0, Some(0));
    let (gone, said) = service(&["uninstall", "--label", "shop"]);
    assert_eq!(gone, Some(3), "{said}");
    let asked = std::fs::read_to_string(asked).unwrap();
    for word in ["enable", "start shop", "stop shop", "disable"] {
        assert!(asked.contains(&format!("--user {word}")), "{word}: {asked}");
    }
    for nonsense in [
        &["install", "listen", "--to", "ftp://x"][..],
        &["install", "logs"],
    ] {
        let (refused, said) = service(nonsense);
        assert!(refused == Some(2) && said.contains("hint: "), "{said}");
    }
}
