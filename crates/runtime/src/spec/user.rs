//! Who a container runs as, by the image's passwd and group files.

use cri::v1::{LinuxContainerSecurityContext, SupplementalGroupsPolicy};

/// Numbers for the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Further groups, the primary one among them.
    pub groups: Vec<u32>,
}

/// The image's account files.
#[derive(Debug, Clone, Default)]
pub struct Accounts {
    /// `/etc/passwd`.
    pub passwd: String,
    /// `/etc/group`.
    pub group: String,
}

struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

impl Accounts {
    fn users(&self) -> impl Iterator<Item = User<'_>> {
        self.passwd.lines().filter_map(|line| {
            let mut f = line.split(':');
            let (name, _, uid, gid) = (f.next()?, f.next()?, f.next()?, f.next()?);
            Some(User { name, uid: uid.parse().ok()?, gid: gid.parse().ok()? })
        })
    }

    fn groups(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.group.lines().filter_map(|line| {
            let mut f = line.split(':');
            let (name, _, gid) = (f.next()?, f.next()?, f.next()?);
            Some((name, gid.parse().ok()?, f.next().unwrap_or("")))
        })
    }
}

/// Resolves the pod's wish over the image's (`user[:group]`).
pub fn resolve(
    context: &LinuxContainerSecurityContext,
    image_user: &str,
    accounts: &Accounts,
) -> Result<Identity, String> {
    let (image_name, image_group) = match image_user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (image_user, None),
    };
    let by_pod = context.run_as_user.is_some() || !context.run_as_username.is_empty();
    let wanted = match &context.run_as_user {
        Some(uid) => uid.value.to_string(),
        None if !context.run_as_username.is_empty() => context.run_as_username.clone(),
        None if image_name.is_empty() => "0".to_string(),
        None => image_name.to_string(),
    };
    let account = accounts.users().find(|u| u.name == wanted).or_else(|| {
        let uid: u32 = wanted.parse().ok()?;
        accounts.users().find(|u| u.uid == uid)
    });
    let uid = match (&account, wanted.parse::<u32>()) {
        (Some(account), _) => account.uid,
        (None, Ok(uid)) => uid,
        (None, Err(_)) => return Err(format!("unable to find user {wanted}: no matching entries in passwd file")),
    };
    let gid = match (&context.run_as_group, image_group.filter(|_| !by_pod)) {
        (Some(gid), _) => id(gid.value)?,
        (None, Some(group)) => match accounts.groups().find(|(name, ..)| *name == group) {
            Some((_, gid, _)) => gid,
            None => {
                group.parse().map_err(|_| format!("unable to find group {group}: no matching entries in group file"))?
            }
        },
        (None, None) => account.as_ref().map_or(0, |a| a.gid),
    };
    let mut groups = vec![gid];
    if context.supplemental_groups_policy() == SupplementalGroupsPolicy::Merge
        && let Some(account) = &account
    {
        let member = |members: &str| members.split(',').any(|m| m == account.name);
        groups.extend(accounts.groups().filter(|(.., members)| member(members)).map(|(_, gid, _)| gid));
    }
    for group in &context.supplemental_groups {
        groups.push(id(*group)?);
    }
    let mut seen = std::collections::BTreeSet::new();
    groups.retain(|g| seen.insert(*g));
    Ok(Identity { uid, gid, groups })
}

fn id(value: i64) -> Result<u32, String> {
    u32::try_from(value).map_err(|_| format!("{value} is not a user or group id"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cri::v1::Int64Value;

    #[test]
    fn identities() {
        let accounts = Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:50::/:/bin/sh\n".into(),
            group: "root:x:0:\nstaff:x:50:\nextra:x:60:web,other\n".into(),
        };
        let context = |user: Option<i64>, group: Option<i64>, groups: &[i64]| LinuxContainerSecurityContext {
            run_as_user: user.map(|value| Int64Value { value }),
            run_as_group: group.map(|value| Int64Value { value }),
            supplemental_groups: groups.to_vec(),
            ..Default::default()
        };
        let who = |uid, gid, groups: &[u32]| Ok(Identity { uid, gid, groups: groups.to_vec() });
        let cases = [
            (context(None, None, &[]), "", who(0, 0, &[0])),
            (context(None, None, &[]), "web", who(1000, 50, &[50, 60])),
            (context(None, None, &[]), "1000:7", who(1000, 7, &[7, 60])),
            (context(None, None, &[]), "web:extra", who(1000, 60, &[60])),
            (context(Some(1000), None, &[9, 60]), "root", who(1000, 50, &[50, 60, 9])),
            (context(Some(42), Some(43), &[]), "web", who(42, 43, &[43])),
            (context(Some(42), None, &[]), "web:staff", who(42, 0, &[0])),
        ];
        for (context, image, expect) in cases {
            assert_eq!(resolve(&context, image, &accounts), expect, "{image} {context:?}");
        }
        assert!(resolve(&context(None, None, &[]), "nobody", &accounts).is_err());
        assert!(resolve(&context(Some(-1), None, &[]), "", &accounts).is_err());
    }
}
