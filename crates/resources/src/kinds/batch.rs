//! batch: jobs and cron jobs.

use meta::{FieldError, Value};
use serde_json::{Map, json};

use crate::cells::{age, containers, human_duration, name, seconds_between, selector, since, titled};
use crate::defaults;
use crate::kinds::job_policies;
use crate::kinds::pod::env_warnings;
use crate::strategy::{Context, Strategy};
use crate::validate::workloads::{matches, selected};
use crate::validate::{At, Errors, cron, formats, pod_spec, selectors};
use meta::Tree;

kinds! {
    Job: "Name|Status|Completions|Duration|Age|Containers*|Images*|Selector*";
    CronJob: "Name|Schedule|Timezone|Suspend?|Active#|Last Schedule|Age|Containers*|Images*|Selector*";
}

/// The condition that says most about a job.
fn job_status(job: &Value) -> &'static str {
    let holds = |kind: &str| job.find("status.conditions", "type", kind).is_some_and(|c| c.text("status") == "True");
    match () {
        _ if holds("Complete") => "Complete",
        _ if holds("Failed") => "Failed",
        _ if job.has("metadata.deletionTimestamp") => "Terminating",
        _ if holds("Suspended") => "Suspended",
        _ if holds("FailureTarget") => "FailureTarget",
        _ if holds("SuccessCriteriaMet") => "SuccessCriteriaMet",
        _ => "Running",
    }
}

/// Labels the server puts on a job's pods, under their new and their old names.
const NAME_LABELS: [&str; 2] = ["batch.kubernetes.io/job-name", "job-name"];
const UID_LABELS: [&str; 2] = ["batch.kubernetes.io/controller-uid", "controller-uid"];
const INDEXED: &str = "Indexed";
/// Above this an indexed job's status grows too large.
const MAX_INDEXED_PARALLELISM: i64 = 100_000;
const MAX_FAILED_INDEXES: i64 = 100_000;
/// Above this many completions, limits for each index need limits of their own.
const MANY_COMPLETIONS: i64 = 100_000;
const MANY_COMPLETIONS_LIMIT: i64 = 10_000;
const MAX_MANAGER: usize = 63;

/// Defaults of a job's spec, also of one in a cron job's template.
fn default_spec(spec: &mut Value) {
    if !spec.has("completions") && !spec.has("parallelism") {
        spec.put("completions", 1);
    }
    spec.or_put("parallelism", 1);
    let retries = if spec.has("backoffLimitPerIndex") { i64::from(i32::MAX) } else { 6 };
    spec.or_put("backoffLimit", retries);
    spec.or_put("completionMode", "NonIndexed");
    spec.or_put("suspend", false);
    let replacement = if spec.has("podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
    spec.or_put("podReplacementPolicy", replacement);
    for rule in spec.list_mut("podFailurePolicy.rules") {
        for pattern in rule.list_mut("onPodConditions") {
            pattern.or_put("status", "True");
        }
    }
    defaults::template(spec, "template");
}

/// Who looks after the job instead of the usual controller.
fn check_manager(at: &At<'_>, errors: &mut Errors) {
    if !at.there() {
        return;
    }
    match at.str().split_once('/') {
        _ if at.blank() => errors.required(at, ""),
        Some((host, path)) if !host.is_empty() && !path.is_empty() => {
            formats::dns_subdomain(host).into_iter().for_each(|why| errors.invalid_as(at, host, why));
            let fits = |b: u8| b.is_ascii_alphanumeric() || b"/%-._~!$&'()*+,;=:".contains(&b);
            if !path.bytes().all(fits) {
                let what = meta::formats::pattern("Invalid path", "[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+", &[]);
                errors.invalid_as(at, path, what);
            }
        }
        _ => errors.invalid(at, "must be a domain-prefixed path (such as \"acme.io/foo\")"),
    }
    if at.str().len() > MAX_MANAGER {
        errors.too_long(at, MAX_MANAGER);
    }
}

/// How many indexes of an indexed job may fail.
fn check_failed_indexes(spec: &At<'_>, errors: &mut Errors) {
    let (failed, parallelism) = (spec.child("maxFailedIndexes"), spec.child("parallelism"));
    let completions = spec.value.number("completions");
    let most = failed.number();
    if most.zip(completions).is_some_and(|(most, completions)| most > completions) {
        errors.invalid(&failed, "must be less than or equal to completions");
    }
    if most.is_some_and(|most| most > MAX_FAILED_INDEXES) {
        errors.invalid(&failed, format!("must be less than or equal to {MAX_FAILED_INDEXES}"));
    }
    if completions.is_none_or(|n| n <= MANY_COMPLETIONS) || !spec.value.has("backoffLimitPerIndex") {
        return;
    }
    if most.is_none() {
        errors.required(&failed, &format!("must be specified when completions is above {MANY_COMPLETIONS}"));
    }
    for field in [parallelism, failed].iter().filter(|f| f.number().is_some_and(|n| n > MANY_COMPLETIONS_LIMIT)) {
        let detail = format!(
            "must be less than or equal to {MANY_COMPLETIONS_LIMIT} when completions are above {MANY_COMPLETIONS} and used with backoff limit per index"
        );
        errors.invalid(field, detail);
    }
}

/// A job's spec without its selector.
fn check_spec(spec: &At<'_>, errors: &mut Errors) {
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
        "ttlSecondsAfterFinished",
    ] {
        errors.not_negative(&spec.child(field));
    }
    if spec.value.has("maxFailedIndexes") && !spec.value.has("backoffLimitPerIndex") {
        errors.required(&spec.child("backoffLimitPerIndex"), "when maxFailedIndexes is specified");
    }
    check_manager(&spec.child("managedBy"), errors);
    let (mode, completions, parallelism) =
        (spec.child("completionMode"), spec.child("completions"), spec.child("parallelism"));
    errors.may_one_of(&mode, &[INDEXED, "NonIndexed"]);
    if mode.str() == INDEXED {
        if !completions.there() {
            errors.required(&completions, "when completion mode is Indexed");
        }
        if parallelism.number().is_some_and(|p| p > MAX_INDEXED_PARALLELISM) {
            errors.invalid(
                &parallelism,
                format!("must be less than or equal to {MAX_INDEXED_PARALLELISM} when completion mode is Indexed"),
            );
        }
        check_failed_indexes(spec, errors);
    } else if ["", "NonIndexed"].contains(&mode.str()) {
        for field in ["backoffLimitPerIndex", "maxFailedIndexes"].map(|f| spec.child(f)).into_iter().filter(At::there) {
            errors.invalid(&field, "requires indexed completion mode");
        }
    }
    if spec.value.has("podFailurePolicy") {
        job_policies::failure(spec, errors);
    }
    if spec.value.has("successPolicy") {
        job_policies::success(spec, errors);
    }
    let replacement: &[&str] =
        if spec.value.has("podFailurePolicy") { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
    errors.may_one_of(&spec.child("podReplacementPolicy"), replacement);
    pod_spec::template(&spec.child("template"), errors);
    let policy = spec.child("template.spec.restartPolicy");
    match policy.str() {
        "Always" | "" => errors.required(&policy, "valid values: \"OnFailure\", \"Never\""),
        "OnFailure" if spec.value.has("podFailurePolicy") => {
            errors.invalid(&policy, "only \"Never\" is supported when podFailurePolicy is specified");
        }
        "OnFailure" | "Never" => {}
        _ => errors.not_supported(&policy, &["Never", "OnFailure"]),
    }
}

/// Puts the labels on the template by which the job, and no other, knows its pods.
fn generate_selector(job: &mut Value) {
    let (name, uid) = (job.at("metadata.name").clone(), job.at("metadata.uid").clone());
    let labels = job.dig("spec.template.metadata.labels");
    for (keys, value) in [(NAME_LABELS, &name), (UID_LABELS, &uid)] {
        for key in keys {
            labels.entry(key).or_insert_with(|| value.clone());
        }
    }
    job.dig("spec.selector.matchLabels").entry(UID_LABELS[0]).or_insert(uid);
}

/// A job without labels has its template's.
fn label_as_template(job: &mut Value) {
    let labels = job.map("spec.template.metadata.labels").clone();
    if !labels.is_empty() && job.map("metadata.labels").is_empty() {
        job.put("metadata.labels", labels);
    }
}

fn check_generated_selector(job: &At<'_>, errors: &mut Errors) {
    if job.value.flag("spec.manualSelector") || !job.value.has("spec.selector") {
        return;
    }
    let labels = job.child("spec.template.metadata");
    let (name, uid) = (job.value.text("metadata.name"), job.value.text("metadata.uid"));
    let mut expected = Map::new();
    for (keys, value) in [(NAME_LABELS, name), (UID_LABELS, uid)] {
        for key in keys {
            expected.insert(key.to_string(), value.into());
            match labels.value.map("labels").get(key) {
                None => errors
                    .0
                    .push(FieldError::required(&labels.path.child("labels").key(key), format!("must be '{value}'"))),
                Some(found) if found != value => {
                    errors.0.push(FieldError::invalid(
                        &labels.path.child("labels").key(key),
                        found.clone(),
                        format!("must be '{value}'"),
                    ));
                }
                Some(_) => {}
            }
        }
    }
    let selector = job.child("spec.selector");
    if !matches(selector.value, &Value::Object(expected)) {
        errors.invalid(&selector, "`selector` not auto-generated");
    }
}

impl Strategy for Job {
    fn default(&self, object: &mut Value) {
        defaults::zero_counts(object, &[]);
        // A new job's template gets its labels later on.
        if object.flag("spec.manualSelector") || object.has("spec.selector") {
            label_as_template(object);
        }
        if let Some(spec) = object.at_mut("spec") {
            spec.or_put("manualSelector", false);
            default_spec(spec);
        }
    }

    fn prepare_create(&self, _cx: &Context<'_>, object: &mut Value) {
        defaults::zero_counts(object, &[]);
        if !object.flag("spec.manualSelector") {
            generate_selector(object);
        }
        label_as_template(object);
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (at, mut errors) = (At::root(object), Errors::default());
        let spec = at.child("spec");
        check_generated_selector(&at, &mut errors);
        check_spec(&spec, &mut errors);
        let selector = spec.child("selector");
        if selector.there() {
            selectors::label_selector(&selector, &mut errors);
            selected(&spec, &mut errors);
        } else {
            errors.required(&selector, "");
        }
        let completions = spec.value.int("completions");
        if spec.value.text("completionMode") == INDEXED && completions > 0 {
            let hostname = format!("{}-{}", at.value.text("metadata.name"), completions - 1);
            if !formats::dns_label(&hostname).is_empty() {
                errors.invalid(
                    &at.child("metadata.name"),
                    format!("will not able to create pod with invalid DNS label: {hostname}"),
                );
            }
        }
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        if cx.subresource == "status" {
            for field in ["active", "succeeded", "failed", "ready", "terminating"] {
                errors.not_negative(&At::root(object).child("status").child(field));
            }
            return errors.0;
        }
        let (spec, before) = (At::new(object.at("spec"), "spec"), old.at("spec"));
        check_spec(&spec, &mut errors);
        selected(&spec, &mut errors);
        // An indexed job grows and shrinks when all its indexes run at once.
        let (completions, wanted) = (spec.child("completions"), spec.value.number("completions"));
        let elastic = spec.value.text("completionMode") == INDEXED
            && wanted == spec.value.number("parallelism")
            && before.number("completions") == before.number("parallelism");
        if wanted != before.number("completions") {
            if !elastic && spec.value.text("completionMode") == INDEXED {
                errors.invalid(&completions, "can only be modified in tandem with spec.parallelism");
            } else if !elastic {
                errors.immutable(&completions, before.at("completions"));
            }
        }
        for field in
            ["selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"]
        {
            errors.immutable(&spec.child(field), before.at(field));
        }
        let mut template = before.at("template").clone();
        if before.flag("suspend") && !old.has("status.startTime") {
            for path in [
                "spec.affinity",
                "spec.nodeSelector",
                "spec.tolerations",
                "spec.schedulingGates",
                "metadata.annotations",
                "metadata.labels",
            ] {
                template.copy_from(path, spec.value.at("template"));
            }
        }
        errors.immutable(&spec.child("template"), &template);
        errors.0
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        env_warnings(&At::new(object.at("spec.template.spec"), "spec.template.spec"))
    }

    fn default_orphans(&self) -> bool {
        true
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let succeeded = object.int("status.succeeded");
        let completions = match (object.number("spec.completions"), object.int("spec.parallelism")) {
            (Some(wanted), _) => format!("{succeeded}/{wanted}"),
            (None, parallel @ 2..) => format!("{succeeded}/1 of {parallel}"),
            (None, _) => format!("{succeeded}/1"),
        };
        let end = Some(object.text("status.completionTime")).filter(|t| !t.is_empty()).unwrap_or(now);
        let duration = seconds_between(object.text("status.startTime"), end).map(human_duration).unwrap_or_default();
        let [names, images] = containers(object.list("spec.template.spec.containers"));
        vec![
            name(object),
            job_status(object).into(),
            completions.into(),
            duration.into(),
            age(object, now),
            names,
            images,
            selector(object.at("spec.selector")),
        ]
    }
}

/// What the controller puts behind a cron job's name: a dash and ten digits of minutes.
const JOB_SUFFIX: usize = 11;
const MAX_NAME: usize = 63 - JOB_SUFFIX;

impl Strategy for CronJob {
    fn past_versions(&self) -> &'static [&'static str] {
        &["v1beta1"]
    }

    fn default(&self, object: &mut Value) {
        defaults::zero_counts(object, &[]);
        let Some(spec) = object.at_mut("spec") else { return };
        spec.or_put("concurrencyPolicy", "Allow");
        spec.or_put("suspend", false);
        spec.or_put("successfulJobsHistoryLimit", 3);
        spec.or_put("failedJobsHistoryLimit", 1);
        // The job itself is filled in when it is made; its pods are known to be pods already.
        defaults::template(spec, "jobTemplate.spec.template");
    }

    fn prepare_create(&self, _cx: &Context<'_>, object: &mut Value) {
        defaults::zero_counts(object, &[]);
    }

    fn validate_create(&self, cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors(self.validate_update(cx, object, &json!({})));
        let name = At::root(object).child("metadata.name");
        if name.str().len() > MAX_NAME {
            errors.invalid(&name, format!("must be no more than {MAX_NAME} characters"));
        }
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        if cx.subresource == "status" {
            return errors.0;
        }
        let spec = At::new(object.at("spec"), "spec");
        let (schedule, zone) = (spec.child("schedule"), spec.child("timeZone"));
        errors.need_format(&schedule, cron::schedule);
        if schedule.str().contains("TZ") && old.at("spec.schedule") != schedule.value {
            let detail = if zone.there() {
                "cannot use both timeZone field and TZ or CRON_TZ in schedule"
            } else {
                "cannot use TZ or CRON_TZ in schedule, use timeZone field instead"
            };
            errors.invalid(&schedule, detail);
        }
        if zone.there() && zone.value != old.at("spec.timeZone") {
            errors.format(&zone, cron::time_zone);
        }
        for field in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
            errors.not_negative(&spec.child(field));
        }
        errors.need_one_of(&spec.child("concurrencyPolicy"), &["Allow", "Forbid", "Replace"]);
        let job = spec.child("jobTemplate.spec");
        check_spec(&job, &mut errors);
        if job.value.has("selector") {
            errors.invalid(&job.child("selector"), "`selector` will be auto-generated");
        }
        if job.value.flag("manualSelector") {
            errors.not_supported(&job.child("manualSelector"), &["nil", "false"]);
        }
        errors.0
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        let path = "spec.jobTemplate.spec.template.spec";
        env_warnings(&At::new(object.at(path), path))
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let last = object.text("status.lastScheduleTime");
        let job = object.at("spec.jobTemplate.spec");
        let [names, images] = containers(job.list("template.spec.containers"));
        vec![
            name(object),
            object.text("spec.schedule").into(),
            object.at("spec.timeZone").as_str().unwrap_or("<none>").into(),
            titled(object.at("spec.suspend")),
            object.list("status.active").len().into(),
            if last.is_empty() { "<none>".into() } else { since(last, now).into() },
            age(object, now),
            names,
            images,
            selector(job.at("selector")),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::tests::expect;

    const CX: Context<'static> = Context::SOMEBODY;

    fn job(changes: Value) -> Value {
        let mut object = json!({"metadata": {"name": "j", "uid": "u-1"},
            "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "x"}]}}}});
        for (path, value) in changes.as_object().unwrap() {
            object.put(path, value.clone());
        }
        Job.default(&mut object);
        Job.prepare_create(&CX, &mut object);
        object
    }

    #[test]
    fn jobs_are_filled_in() {
        let object = job(json!({}));
        expect(&Job.validate_create(&CX, &object), &[], &object);
        assert_eq!(object["spec"]["selector"], json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u-1"}}));
        assert_eq!(object["spec"]["template"]["metadata"]["labels"]["job-name"], "j");
        assert_eq!((object["spec"].int("completions"), object["spec"].int("backoffLimit")), (1, 6));
    }

    #[test]
    fn jobs_are_checked() {
        let check = |changes, expected: &[&str]| {
            let object = job(changes);
            expect(&Job.validate_create(&CX, &object), expected, &object);
        };
        check(
            json!({"spec.template.spec.restartPolicy": "Always"}),
            &["spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""],
        );
        check(
            json!({"spec.parallelism": -1}),
            &["spec.parallelism: Invalid value: -1: must be greater than or equal to 0"],
        );
        check(
            json!({"spec.completionMode": "Indexed", "spec.parallelism": 2}),
            &["spec.completions: Required value: when completion mode is Indexed"],
        );
        check(
            json!({"spec.podFailurePolicy.rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [2, 1]}}]}),
            &["spec.podFailurePolicy.rules[0].onExitCodes.values: Invalid value: [2,1]: must be ordered"],
        );
    }

    #[test]
    fn little_of_a_job_may_change() {
        let old = job(json!({}));
        let check = |path: &str, value: Value, count: usize| {
            let mut new = old.clone();
            new.put(path, value);
            assert_eq!(Job.validate_update(&CX, &new, &old).len(), count, "{path}");
        };
        check("spec.parallelism", json!(5), 0);
        check("spec.suspend", json!(true), 0);
        check("spec.completions", json!(5), 1);
        check("spec.template.spec.hostname", json!("h"), 1);
        check("spec.template.spec.nodeSelector", json!({"a": "b"}), 1);
        let old = job(json!({"spec.suspend": true}));
        let mut new = old.clone();
        new.put("spec.template.spec.nodeSelector", json!({"a": "b"}));
        expect(&Job.validate_update(&CX, &new, &old), &[], &new);
    }

    #[test]
    fn cron_jobs_are_checked() {
        let check = |changes: Value, expected: &[&str]| {
            let mut object = json!({"metadata": {"name": "c"}, "spec": {"schedule": "* * * * *",
                "jobTemplate": {"spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "x"}]}}}}}});
            for (path, value) in changes.as_object().unwrap() {
                object.put(path, value.clone());
            }
            CronJob.default(&mut object);
            expect(&CronJob.validate_create(&CX, &object), expected, &object);
        };
        check(json!({}), &[]);
        check(
            json!({"spec.schedule": "61 * * * *"}),
            &["spec.schedule: Invalid value: \"61 * * * *\": end of range (61) above maximum (59): 61"],
        );
        check(
            json!({"spec.timeZone": "Nowhere/X"}),
            &["spec.timeZone: Invalid value: \"Nowhere/X\": unknown time zone Nowhere/X"],
        );
        check(
            json!({"metadata.name": "x".repeat(53)}),
            &[&format!("metadata.name: Invalid value: {:?}: must be no more than 52 characters", "x".repeat(53))],
        );
        check(
            json!({"spec.concurrencyPolicy": "X"}),
            &["spec.concurrencyPolicy: Unsupported value: \"X\": supported values: \"Allow\", \"Forbid\", \"Replace\""],
        );
    }
}
