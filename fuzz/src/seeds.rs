//! What mutations start from.

pub const OBJECTS: &[&str] = &[
    r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"web-0","namespace":"default","uid":"6f1e","resourceVersion":"12","labels":{"app":"web","tier":"front"},"annotations":{"a/b":"c"},"finalizers":["example.com/hold"],"ownerReferences":[{"apiVersion":"apps/v1","kind":"ReplicaSet","name":"web","uid":"77","controller":true}],"managedFields":[{"manager":"kubectl","operation":"Update","apiVersion":"v1","time":"2026-01-01T00:00:00Z","fieldsType":"FieldsV1","fieldsV1":{"f:metadata":{"f:labels":{".":{},"f:app":{}}},"f:spec":{"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:image":{},"f:name":{}}}}}}]},"spec":{"containers":[{"name":"c","image":"i:1","args":["a","b"],"env":[{"name":"E","value":"v"}],"ports":[{"containerPort":80,"protocol":"TCP"},{"containerPort":80,"protocol":"UDP"}],"resources":{"limits":{"cpu":"100m","memory":"1Gi"}},"livenessProbe":{"httpGet":{"path":"/","port":"http"},"periodSeconds":10},"volumeMounts":[{"name":"v","mountPath":"/v"}]}],"volumes":[{"name":"v","emptyDir":{"sizeLimit":"1Mi"}},{"name":"w","projected":{"sources":[{"configMap":{"name":"m","items":[{"key":"k","path":"p"}]}}]}}],"tolerations":[{"key":"k","operator":"Exists","effect":"NoSchedule"}],"nodeSelector":{"a":"b"},"terminationGracePeriodSeconds":30,"hostNetwork":false},"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True","lastTransitionTime":"2026-01-01T00:00:00Z"}],"podIPs":[{"ip":"10.0.0.1"}],"startTime":"2026-01-01T00:00:00Z"}}"#,
    r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","labels":null,"creationTimestamp":null},"spec":{"containers":[],"overhead":{"cpu":1.5,"memory":1073741824},"unknown":{"x":[1,{"y":null}]}}}"#,
    r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"c"},"data":{"k":"v","é\n":"😀"},"binaryData":{"b":"AAEC"}}"#,
    r#"{"kind":"Pod","apiVersion":"v1","metadata":{},"spec":{"containers":[{"name":"c","image":"j","ports":[{"containerPort":"80"}],"stdin":"true"}]},"spec":{"nodeName":7}}"#,
];

pub const YAML: &[&str] = &[
    "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  labels: &l {app: web, n: yes}\n  annotations:\n    <<: *l\nspec:\n  containers:\n  - name: c\n    image: \"i\"\n    args: [a, 'b', 0x1F, 017, 1e3, ~]\n    command:\n    - sh\n    - -c\n    - |\n      echo 1\n      echo 2\n  terminationGracePeriodSeconds: 3_0\n",
    "# comment\n---\n{apiVersion: v1, kind: Pod, metadata: {name: !!str 5, creationTimestamp: null}, spec: {hostNetwork: off}}\n---\nb: 1\n...\n",
    "a: &a [1, 2]\nb: &b [*a, *a]\nc: &c [*b, *b, *b]\nd: [*c, *c, *c]\n? [complex, key]\n: >-\n  folded\n  text\n\n  more\n",
];

pub const JSON_PATCHES: &[&str] = &[
    r#"[{"op":"test","path":"/metadata/name","value":"web-0"},{"op":"add","path":"/metadata/labels/a~1b","value":"x"},{"op":"replace","path":"/spec/containers/0/image","value":"i:2"},{"op":"remove","path":"/spec/nodeSelector"}]"#,
    r#"[{"op":"copy","from":"/spec","path":"/metadata/annotations/x"},{"op":"move","from":"/spec/volumes/0","path":"/spec/volumes/-"},{"op":"add","path":"/spec/containers/-1","value":{}}]"#,
    r#"[{"op":"copy","from":"","path":"/a"},{"op":"copy","from":"","path":"/b"},{"op":"copy","from":"","path":"/c"},{"op":"copy","from":"","path":"/d"},{"op":"add","path":"","value":{"k":[]}}]"#,
];

pub const MERGE_PATCHES: &[&str] = &[
    r#"{"metadata":{"labels":{"app":null,"x":"y"},"finalizers":["f/1"]},"spec":{"containers":[{"name":"c","image":"j"},{"name":"d","image":"k"}],"nodeSelector":null}}"#,
    r#"{"spec":{"$setElementOrder/containers":[{"name":"d"},{"name":"c"}],"containers":[{"$patch":"delete","name":"c"},{"name":"d","ports":[{"containerPort":80,"protocol":"UDP","$patch":"delete"}]}],"volumes":[{"name":"v","$retainKeys":["name","hostPath"],"hostPath":{"path":"/x"}}]}}"#,
    r#"{"metadata":{"$deleteFromPrimitiveList/finalizers":["example.com/hold"],"$setElementOrder/finalizers":["a"]},"spec":{"$patch":"replace","containers":[{"name":"e"}]},"status":{"$patch":"merge","conditions":[{"$patch":"replace"},{"type":"Ready","status":"False"}]}}"#,
];

pub const SELECTORS: &[&str] = &[
    "app=web,tier!=back,env in (a,b),!gone,here,n notin (x),v>5,w<7",
    "metadata.name=a,status.phase!=Running,spec.nodeName==n\\,m",
    "a.b/c in (),x=,!=y,()",
];

pub const QUANTITIES: &[&str] = &[
    "100m",
    "1Gi",
    "1.5",
    "-0.001k",
    "1e3",
    "12E",
    "9223372036854775807",
    "1e-9",
    ".5Mi",
    "+1n",
    "1E6",
    "0.000000000000001u",
];

pub const TIMES: &[&str] = &[
    "2026-01-01T00:00:00Z",
    "2026-01-01T00:00:00.123456+02:00",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:60Z",
    "1h30m5.5s",
    "-2562047h47m16.854775808s",
    "1.5us",
];

pub const SCHEMAS: &[&str] = &[
    r#"{"type":"object","required":["spec"],"properties":{"spec":{"type":"object","properties":{"a":{"type":"string","pattern":"^(a|b)*$","default":"a","enum":["a","b"]},"l":{"type":"array","x-kubernetes-list-type":"map","x-kubernetes-list-map-keys":["k"],"items":{"type":"object","required":["k"],"properties":{"k":{"type":"string"}}}},"i":{"x-kubernetes-int-or-string":true},"m":{"type":"object","additionalProperties":{"type":"integer","minimum":0,"multipleOf":2}},"o":{"type":"object","x-kubernetes-preserve-unknown-fields":true},"n":{"type":"number","nullable":true,"format":"double"}},"x-kubernetes-validations":[{"rule":"self.a == 'a'"}]}}}"#,
    r#"{"type":"object","properties":{"x":{"allOf":[{"minLength":1},{"not":{"enum":["q"]}}],"type":"string","maxLength":5},"e":{"type":"object","x-kubernetes-embedded-resource":true,"x-kubernetes-preserve-unknown-fields":true}}}"#,
];

pub const EXPRESSIONS: &[&str] = &[
    "x.l.all(i, i > 0) && x.m.exists(k, k == 'a') || has(x.o.p) ? x.s.startsWith('t') : x.i + 1 == 8",
    "x.l.map(i, i * 2).filter(i, i > 2).size() + x.s.size() - int('3') % 2",
    "quantity('1Gi').isGreaterThan(quantity('1Mi')) && isURL('https://a/b?c=d') && ip('10.0.0.1').family() == 4",
    "'abc'.matches('^a.*c$') && x.s.find('[a-z]+') == 'text' && x.?none.orValue('d') == 'd' && type(x) == map",
    "[1, 2].map(a, [3, 4].map(b, a * b)) + [[timestamp('2026-01-01T00:00:00Z').getFullYear()]] == [[duration('1h').getHours()]]",
    "{'a': [1u, b'x', 1.5e3, null, true]}.a[x.i - 7] == dyn(1) && semver('1.2.3').major() == 1 && 'a-b'.split('-').join('+') == r'a\\b'",
];
