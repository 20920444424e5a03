//! Who may come in and who decides, as configured: an issuer that is another cluster, found over HTTPS; tokens of a file and
//! of a webhook; an authorizer elsewhere; and files that change while the server runs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use nauplius::roles::AccessOptions;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::api::expect::differences;
use crate::api::hooks::Hooks;
use crate::api::http::{Identity, Server};
use crate::api::server::{InProcess, free_port};

/// A changed file is looked at every few seconds; a busy machine takes its time.
const TAKEN_UP_WITHIN: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Who a request is from, besides the administrator.
enum As<'a> {
    Admin,
    Nobody,
    Token(&'a str),
    /// The administrator as another, by headers.
    Acting(&'a str, &'a [(&'a str, &'a str)]),
}

async fn ask(server: &Server, who: &As<'_>, method: &str, path: &str, body: Value) -> Result<(u16, Value)> {
    let mut headers = vec![("accept".to_string(), "application/json".to_string())];
    headers.push(("content-type".into(), "application/json".into()));
    let identity = match who {
        As::Admin => Identity::Certificate,
        As::Nobody => Identity::None,
        As::Token(token) => {
            headers.push(("authorization".into(), format!("Bearer {token}")));
            Identity::None
        }
        As::Acting(token, more) => {
            headers.push(("authorization".into(), format!("Bearer {token}")));
            headers.extend(more.iter().map(|(name, value)| (name.to_string(), value.to_string())));
            Identity::None
        }
    };
    let bytes: Bytes = if body.is_null() { Bytes::new() } else { body.to_string().into() };
    let answer = server.send(identity, method, path, &headers, bytes).await?;
    Ok((answer.code.as_u16(), answer.json().unwrap_or(Value::Null)))
}

/// An answer of this code that matches.
async fn expect(server: &Server, who: As<'_>, request: &str, body: Value, code: u16, matching: Value) -> Result<Value> {
    let (method, path) = request.split_once(' ').context("VERB /path")?;
    let (got, answer) = ask(server, &who, method, path, body).await?;
    let differ = differences(&matching, &answer);
    ensure!(got == code && differ.is_empty(), "{request}: {got}, {differ:?} in {answer}");
    Ok(answer)
}

const WHOAMI: &str = "POST /apis/authentication.k8s.io/v1/selfsubjectreviews";

fn review() -> Value {
    json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"})
}

async fn whoami(server: &Server, token: &str, user: Value) -> Result<()> {
    expect(server, As::Token(token), WHOAMI, review(), 201, json!({"status": {"userInfo": user}})).await.map(drop)
}

/// Asks until it is so.
async fn until<F: Future<Output = Result<()>>>(check: impl Fn() -> F) -> Result<()> {
    let deadline = Instant::now() + TAKEN_UP_WITHIN;
    loop {
        match check().await {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error.context("it never became so")),
            Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
        }
    }
}

fn write(dir: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let file = dir.join(name);
    std::fs::write(&file, text)?;
    Ok(file)
}

async fn start(access: AccessOptions) -> Result<(InProcess, Server)> {
    let listen = format!("127.0.0.1:{}", free_port()?).parse()?;
    let process = InProcess::with(listen, Default::default(), Default::default(), access).await?;
    let server = Server::from_kubeconfig(&process.kubeconfig)?;
    Ok((process, server))
}

/// A cluster whose service accounts other clusters may believe: its address is its issuer, and strangers may read its keys.
async fn issuer() -> Result<(InProcess, Server, String)> {
    let listen: std::net::SocketAddr = format!("127.0.0.1:{}", free_port()?).parse()?;
    let url = format!("https://{listen}");
    let access = AccessOptions { service_account_issuer: vec![url.clone()], ..Default::default() };
    let process = InProcess::with(listen, Default::default(), Default::default(), access).await?;
    let server = Server::from_kubeconfig(&process.kubeconfig)?;
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "keys"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:service-account-issuer-discovery"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:unauthenticated"}],
    });
    let path = "POST /apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    expect(&server, As::Admin, path, binding, 201, json!({})).await?;
    Ok((process, server, url))
}

async fn token(issuer: &Server, audience: &str) -> Result<String> {
    let request =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": [audience]}});
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let deadline = Instant::now() + TAKEN_UP_WITHIN;
    loop {
        // The account is made by a controller.
        let (code, answer) = ask(issuer, &As::Admin, "POST", path, request.clone()).await?;
        if code == 201 {
            return Ok(answer["status"]["token"].as_str().context("a token")?.into());
        }
        ensure!(Instant::now() < deadline, "no token: {answer}");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn authority(kubeconfig: &Path) -> Result<String> {
    use base64::Engine;
    let config = crate::api::yaml(&std::fs::read(kubeconfig)?)?;
    let text = config["clusters"][0]["cluster"]["certificate-authority-data"].as_str().context("an authority")?;
    Ok(String::from_utf8(base64::engine::general_purpose::STANDARD.decode(text)?)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_a_configured_issuer() -> Result<()> {
    let (first, issuing, url) = issuer().await?;
    let authority = authority(&first.kubeconfig)?;
    let document = |prefix: &str| {
        json!({
            "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration",
            "jwt": [{
                "issuer": {"url": url, "certificateAuthority": authority, "audiences": ["other", "here"], "audienceMatchPolicy": "MatchAny"},
                "claimMappings": {
                    "username": {"expression": format!("'{prefix}' + claims.sub")},
                    "groups": {"expression": "[claims['kubernetes.io'].namespace]"},
                    "uid": {"expression": "claims['kubernetes.io'].serviceaccount.uid"},
                    "extra": [{"key": "example.com/issuer", "valueExpression": "claims.iss"}],
                },
                "claimValidationRules": [{"expression": "claims.exp - claims.nbf <= 7200", "message": "it lives too long"}],
                "userValidationRules": [{"expression": "!user.username.startsWith('system:')", "message": "system: is taken"}],
            }],
            "anonymous": {"enabled": true, "conditions": [{"path": "/livez"}]},
        })
    };
    let dir = tempfile::tempdir()?;
    let file = write(dir.path(), "authentication.json", &document("other:").to_string())?;
    let access = AccessOptions { authentication_config: Some(file.clone()), ..Default::default() };
    let (_second, server) = start(access).await?;
    let good = token(&issuing, "here").await?;
    let user = |prefix: &str| {
        let name = format!("{prefix}system:serviceaccount:default:default");
        json!({"username": name, "uid": "$any", "groups": ["default", "system:authenticated"],
            "extra": {"example.com/issuer": [url], "authentication.kubernetes.io/credential-id": "$any"}})
    };
    // Discovery goes on in the background.
    until(|| whoami(&server, &good, user("other:"))).await?;
    let forbidden =
        json!({"reason": "Forbidden", "message": "~User \"other:system:serviceaccount:default:default\" cannot list"});
    expect(&server, As::Token(&good), "GET /api/v1/nodes", Value::Null, 403, forbidden).await?;
    let unauthorized = || json!({"reason": "Unauthorized"});
    let elsewhere = token(&issuing, "elsewhere").await?;
    for wrong in [&*elsewhere, &good[..good.len() - 4], "no.token.atall", "none"] {
        expect(&server, As::Token(wrong), WHOAMI, review(), 401, unauthorized()).await?;
    }
    // Strangers have one door.
    expect(&server, As::Nobody, "GET /livez", Value::Null, 200, Value::Null).await?;
    expect(&server, As::Nobody, "GET /version", Value::Null, 401, unauthorized()).await?;
    // A token review says what the server itself would.
    let asked = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": good}});
    let path = "POST /apis/authentication.k8s.io/v1/tokenreviews";
    expect(&server, As::Admin, path, asked, 201, json!({"status": {"authenticated": true, "user": {"uid": "$any"}}}))
        .await?;
    // A document that is wrong changes nothing; one that is good counts soon.
    write(dir.path(), "authentication.json", "{}")?;
    write(dir.path(), "authentication.json", &document("new:").to_string())?;
    until(|| whoami(&server, &good, user("new:"))).await?;
    let page = server.send(Identity::Certificate, "GET", "/metrics", &[], Bytes::new()).await?.body;
    let page = String::from_utf8_lossy(&page).into_owned();
    for name in [
        "apiserver_authentication_jwt_authenticator_latency_seconds_count{jwt_issuer_hash=\"sha256:",
        "apiserver_authentication_config_controller_automatic_reloads_total{status=\"success\"} 1",
    ] {
        ensure!(page.contains(name), "the metrics lack {name}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_are_asked() -> Result<()> {
    let hooks = Hooks::start().await?;
    let dir = tempfile::tempdir()?;
    let tokens = write(dir.path(), "tokens.csv", "t-admin,root,1,\"system:masters\"\nt-jane,jane,2,\"dev,ops\"\n")?;
    let review = write(dir.path(), "review.kubeconfig", &hooks.kubeconfig("/tokens/user/remote-user"))?;
    let allow = write(dir.path(), "allow.kubeconfig", &hooks.kubeconfig("/allow/allow"))?;
    let deny = write(dir.path(), "deny.kubeconfig", &hooks.kubeconfig("/deny/deny"))?;
    let broken = write(dir.path(), "broken.kubeconfig", &hooks.kubeconfig("/broken/broken"))?;
    let webhook = |name: &str, file: &Path, policy: &str, condition: &str| {
        json!({"type": "Webhook", "name": name, "webhook": {
            "timeout": "5s", "authorizedTTL": "30s", "unauthorizedTTL": "30s", "failurePolicy": policy,
            "subjectAccessReviewVersion": "v1", "matchConditionSubjectAccessReviewVersion": "v1",
            "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": file},
            "matchConditions": [{"expression": condition}]}})
    };
    let document = |condition: &str| {
        let authorizers = [
            webhook(
                "deny",
                &deny,
                "NoOpinion",
                "has(request.resourceAttributes) && request.resourceAttributes.namespace == 'closed'",
            ),
            webhook("allow", &allow, "NoOpinion", condition),
            json!({"type": "Node", "name": "node"}),
            json!({"type": "RBAC", "name": "rbac"}),
            webhook("broken", &broken, "Deny", "request.user == 'jane'"),
        ];
        json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthorizationConfiguration", "authorizers": authorizers})
    };
    let config = write(dir.path(), "authorization.json", &document("'remote' in request.groups").to_string())?;
    let access = AccessOptions {
        token_auth_file: Some(tokens),
        authentication_token_webhook_config_file: Some(review),
        authentication_token_webhook_version: Some("v1".into()),
        authorization_config: Some(config),
        anonymous_auth: Some(false),
        enable_bootstrap_token_auth: Some(true),
        ..Default::default()
    };
    let (_process, server) = start(access).await?;
    let anything = || json!({});
    expect(&server, As::Nobody, "GET /livez", Value::Null, 401, anything()).await?;
    whoami(
        &server,
        "t-jane",
        json!({"username": "jane", "uid": "2", "groups": ["dev", "ops", "system:authenticated"]}),
    )
    .await?;
    whoami(&server, "remote-user", json!({"username": "remote-user", "groups": ["remote", "system:authenticated"]}))
        .await?;
    ensure!(hooks.asked("tokens").len() == 1, "an answer about a token is kept");
    expect(&server, As::Token("someone"), WHOAMI, self::review(), 401, anything()).await?;

    // The webhook allows what RBAC would not, and is asked once about one thing.
    for _ in 0..2 {
        expect(
            &server,
            As::Token("remote-user"),
            "GET /api/v1/nodes?fieldSelector=metadata.name%3Dx&labelSelector=a%3Db",
            Value::Null,
            200,
            anything(),
        )
        .await?;
    }
    let asked = Value::from(hooks.asked("allow"));
    let nodes = json!({"user": "remote-user", "groups": ["remote", "system:authenticated"], "resourceAttributes": {
        "verb": "list", "resource": "nodes", "version": "v1", "namespace": "$none", "name": "x",
        "fieldSelector": {"requirements": [{"key": "metadata.name", "operator": "In", "values": ["x"]}]},
        "labelSelector": {"requirements": [{"key": "a", "operator": "In", "values": ["b"]}]}}});
    ensure!(
        asked.as_array().is_some_and(|asked| asked.iter().filter(|a| differences(&nodes, a).is_empty()).count() == 1),
        "{asked}"
    );
    // One that says no is not overruled.
    let no = json!({"reason": "Forbidden", "message": "~the hook says deny"});
    expect(&server, As::Token("remote-user"), "GET /api/v1/namespaces/closed/pods", Value::Null, 403, no).await?;
    // One that cannot be asked says no where it is told to.
    expect(&server, As::Token("t-jane"), "GET /api/v1/nodes", Value::Null, 403, anything()).await?;
    // Reviews ask the same.
    let access = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {
        "user": "x", "groups": ["remote"], "resourceAttributes": {"verb": "get", "resource": "pods", "namespace": "closed"}}});
    let path = "POST /apis/authorization.k8s.io/v1/subjectaccessreviews";
    expect(
        &server,
        As::Admin,
        path,
        access,
        201,
        json!({"status": {"allowed": false, "denied": true, "reason": "the hook says deny"}}),
    )
    .await?;
    // Masters are asked about nowhere.
    expect(&server, As::Token("t-admin"), "GET /api/v1/namespaces/closed/pods", Value::Null, 200, anything()).await?;

    // A changed document counts soon.
    write(dir.path(), "authorization.json", &document("request.user == 'jane'").to_string())?;
    let changed = || async {
        expect(&server, As::Token("t-jane"), "GET /api/v1/nodes", Value::Null, 200, json!({})).await.map(drop)
    };
    until(changed).await?;
    expect(&server, As::Token("remote-user"), "GET /api/v1/nodes", Value::Null, 403, anything()).await?;

    // A machine that joins.
    let encode = |text: &str| {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode(text)
    };
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bootstrap-token-abcdef"}, "type": "bootstrap.kubernetes.io/token",
        "data": {"token-id": encode("abcdef"), "token-secret": encode("0123456789abcdef"), "usage-bootstrap-authentication": encode("true"),
            "auth-extra-groups": encode("system:bootstrappers:worker")}});
    expect(&server, As::Admin, "POST /api/v1/namespaces/kube-system/secrets", secret, 201, anything()).await?;
    let joining = json!({"username": "system:bootstrap:abcdef", "groups": {"$has": ["system:bootstrappers", "system:bootstrappers:worker"]}});
    until(|| whoami(&server, "abcdef.0123456789abcdef", joining.clone())).await?;
    expect(&server, As::Token("abcdef.0123456789abcdeg"), WHOAMI, self::review(), 401, anything()).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acting_as_another_within_bounds() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let tokens = write(dir.path(), "tokens.csv", "t-helper,helper,1\nt-old,old,2\n")?;
    let (_process, server) = start(AccessOptions { token_auth_file: Some(tokens), ..Default::default() }).await?;
    let role = |name: &str, rules: Value| json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules});
    let bind = |name: &str, user: &str| {
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}]})
    };
    let rules = [
        (
            "act",
            "helper",
            json!([
            {"apiGroups": ["authentication.k8s.io"], "resources": ["users"], "resourceNames": ["jane"], "verbs": ["impersonate:user-info"]},
            {"apiGroups": ["authentication.k8s.io"], "resources": ["groups"], "resourceNames": ["dev"], "verbs": ["impersonate:user-info"]},
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["impersonate-on:user-info:list"]},
            {"apiGroups": ["authentication.k8s.io"], "resources": ["selfsubjectreviews"], "verbs": ["impersonate-on:user-info:create"]}]),
        ),
        (
            "old",
            "old",
            json!([
            {"apiGroups": [""], "resources": ["users", "groups"], "verbs": ["impersonate"]},
            {"apiGroups": ["authentication.k8s.io"], "resources": ["uids", "userextras/scopes"], "verbs": ["impersonate"]}]),
        ),
        ("read", "jane", json!([{"apiGroups": [""], "resources": ["pods", "secrets"], "verbs": ["list"]}])),
    ];
    for (name, user, rules) in rules {
        let base = "POST /apis/rbac.authorization.k8s.io/v1";
        expect(&server, As::Admin, &format!("{base}/clusterroles"), role(name, rules), 201, json!({})).await?;
        expect(&server, As::Admin, &format!("{base}/clusterrolebindings"), bind(name, user), 201, json!({})).await?;
    }
    let jane = [("impersonate-user", "jane")];
    let dev = [("impersonate-user", "jane"), ("impersonate-group", "dev")];
    let lists = || async {
        expect(&server, As::Acting("t-helper", &jane), "GET /api/v1/pods", Value::Null, 200, json!({})).await.map(drop)
    };
    until(lists).await?;
    // Jane may read secrets; whoever acts as her within bounds may not.
    let no = json!({"message": "~User \"helper\" cannot impersonate-on:user-info:list resource \"secrets\" in API group \"\" at the cluster scope"});
    expect(&server, As::Acting("t-helper", &jane), "GET /api/v1/secrets", Value::Null, 403, no).await?;
    let user = json!({"status": {"userInfo": {"username": "jane", "groups": ["dev", "system:authenticated"]}}});
    expect(&server, As::Acting("t-helper", &dev), WHOAMI, review(), 201, user).await?;
    for (headers, why) in [
        (
            vec![("impersonate-user", "joe")],
            "cannot impersonate:user-info resource \"users\" in API group \"authentication.k8s.io\"",
        ),
        (
            vec![("impersonate-user", "jane"), ("impersonate-group", "system:masters")],
            "impersonating the system:masters group is not allowed",
        ),
        (
            vec![("impersonate-user", "jane"), ("impersonate-uid", "7")],
            "cannot impersonate:user-info resource \"uids\"",
        ),
        (vec![("impersonate-user", "system:node:a")], "impersonate-on:arbitrary-node:list"),
    ] {
        let path = "GET /api/v1/pods";
        expect(
            &server,
            As::Acting("t-helper", &headers),
            path,
            Value::Null,
            403,
            json!({"message": format!("~{why}")}),
        )
        .await?;
    }
    // As it always was: all that the other may do, with uid and extras.
    let all = [
        ("impersonate-user", "jane"),
        ("impersonate-group", "dev"),
        ("impersonate-uid", "7"),
        ("impersonate-extra-scopes", "a"),
        ("impersonate-extra-scopes", "b"),
    ];
    let user = json!({"status": {"userInfo": {"username": "jane", "uid": "7", "groups": ["dev", "system:authenticated"], "extra": {"scopes": ["a", "b"]}}}});
    expect(&server, As::Acting("t-old", &all), WHOAMI, review(), 201, user).await?;
    expect(&server, As::Acting("t-old", &jane), "GET /api/v1/secrets", Value::Null, 200, json!({})).await?;
    let stray = [("impersonate-group", "dev")];
    expect(
        &server,
        As::Acting("t-old", &stray),
        WHOAMI,
        review(),
        400,
        json!({"message": "~without impersonating a user name"}),
    )
    .await?;
    Ok(())
}
