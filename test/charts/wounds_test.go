package charts

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Faults of an earlier attempt at this stack. Each is tested in the values that
// reach upstream's charts and, where these are at hand, in what they make of them.

func TestOperatorHasItsCertificate(t *testing.T) {
	for _, profile := range profilesOf(t, "kalypso-otel-operator") {
		operator := standInValues(t, "kalypso-otel-operator", profile)
		if at(operator, "admissionWebhooks", "certManager", "enabled") != true || at(operator, "admissionWebhooks", "autoGenerateCert", "enabled") != false {
			t.Errorf("profile %q: the certificate is not cert-manager's", profile)
		}
	}
	for _, profile := range profilesOf(t, "kalypso-cert-manager") {
		if at(standInValues(t, "kalypso-cert-manager", profile), "startupapicheck", "enabled") != true {
			t.Errorf("profile %q: nothing waits for cert-manager's webhook", profile)
		}
	}
	order := func(chart string) int {
		return slices.IndexFunc(stack, func(r release) bool { return r.chart == chart })
	}
	if order("kalypso-cert-manager") > order("kalypso-otel-operator") {
		t.Error("the operator comes before cert-manager")
	}

	t.Run("upstream", func(t *testing.T) {
		var kinds []string
		for _, o := range upstream(t, "kalypso-otel-operator", "") {
			if strings.HasPrefix(text(o.fields, "apiVersion"), "cert-manager.io/") {
				kinds = append(kinds, o.kind)
			}
			if o.kind == "Secret" {
				t.Errorf("%v is made while rendering", o)
			}
		}
		slices.Sort(kinds)
		if diff := cmp.Diff(kinds, []string{"Certificate", "Issuer"}); diff != "" {
			t.Errorf("objects for cert-manager (-got +want):\n%s", diff)
		}
		check := find(t, upstream(t, "kalypso-cert-manager", ""), "Job", "cert-manager-startupapicheck")
		if hook := text(check.fields, "metadata", "annotations", "helm.sh/hook"); !strings.Contains(hook, "post-install") {
			t.Errorf("the check of the webhook is the hook %q", hook)
		}
	})
}

// Every part calls the object store by the name of its Service.
func TestObjectStoreHasTheNameOfItsURL(t *testing.T) {
	service := served(find(t, storeObjects(t, map[string]any{}), "Service", storeChart))
	for chart := range buckets {
		for _, profile := range profilesOf(t, chart) {
			called := map[endpoint]bool{}
			for _, e := range endpoints(object{fields: standInValues(t, chart, profile)}) {
				if e.namespace == "minio" {
					called[e] = true
				}
			}
			if len(called) != 1 || !slices.Contains(service, slices.Collect(maps.Keys(called))[0]) {
				t.Errorf("%s with profile %q calls %v, and the store is %v", chart, profile, slices.Collect(maps.Keys(called)), service)
			}
		}
	}
}

func TestProfilesPipelineHasNoBatch(t *testing.T) {
	check := func(t *testing.T, config map[string]any, args []any) {
		t.Helper()
		profiles := at(config, "service", "pipelines", "profiles")
		if profiles == nil {
			t.Fatal("there is no pipeline of profiles")
		}
		for _, p := range list(profiles, "processors") {
			if strings.HasPrefix(p.(string), "batch") {
				t.Errorf("the pipeline of profiles has the processor %v", p)
			}
		}
		if !slices.Contains(args, any("--feature-gates=service.profilesSupport")) {
			t.Errorf("the gate for profiles is not among the arguments %v", args)
		}
		checkPipelines(t, config)
	}
	for _, profile := range profilesOf(t, "kalypso-collector") {
		values := standInValues(t, "kalypso-collector", profile)
		config, _ := at(values, "alternateConfig").(map[string]any)
		if values["config"] != nil {
			t.Error("there is a config, which is merged over the chart's default")
		}
		check(t, config, list(values, "command", "extraArgs"))
	}
	t.Run("upstream", func(t *testing.T) {
		objects := upstream(t, "kalypso-collector", "")
		c := containers(find(t, objects, "DaemonSet", "kalypso-collector-agent"))[0]
		check(t, relay(t, objects, "kalypso-collector-agent"), append(list(c, "args"), list(c, "command")...))
	})
	t.Run("upstream, cluster collector", func(t *testing.T) {
		checkPipelines(t, relay(t, upstream(t, "kalypso-cluster-collector", ""), "kalypso-cluster-collector"))
	})
}

// relay is a collector's configuration.
func relay(t *testing.T, objects []object, name string) map[string]any {
	t.Helper()
	return parseYAML(t, text(find(t, objects, "ConfigMap", name).fields, "data", "relay"))
}

// checkPipelines says what a collector would refuse to start over: a pipeline with
// something that is not configured, or without an exporter; and what would be
// there for nothing.
func checkPipelines(t *testing.T, config map[string]any) {
	t.Helper()
	used := map[string]bool{}
	pipelines, _ := at(config, "service", "pipelines").(map[string]any)
	for name, pipeline := range pipelines {
		for _, part := range []string{"receivers", "processors", "exporters"} {
			for _, component := range list(pipeline, part) {
				used[part+component.(string)] = true
				known, _ := config[part].(map[string]any)
				// Presets of the chart add these while rendering.
				preset := slices.Contains([]string{"k8s_attributes"}, component.(string))
				if _, ok := known[component.(string)]; !ok && !preset {
					t.Errorf("pipeline %s: %s has no %v", name, part, component)
				}
			}
		}
		if len(list(pipeline, "exporters")) == 0 {
			t.Errorf("pipeline %s has no exporter", name)
		}
	}
	exporters, _ := config["exporters"].(map[string]any)
	for name := range exporters {
		if !used["exporters"+name] {
			t.Errorf("nothing goes to the exporter %s", name)
		}
	}
}

func TestPyroscopeBringsNoAgent(t *testing.T) {
	for _, profile := range profilesOf(t, "kalypso-pyroscope") {
		values := standInValues(t, "kalypso-pyroscope", profile)
		for _, part := range []string{"alloy", "agent", "minio"} {
			if at(values, part, "enabled") != false {
				t.Errorf("profile %q: %s is not off", profile, part)
			}
		}
	}
	t.Run("upstream", func(t *testing.T) {
		for _, o := range upstream(t, "kalypso-pyroscope", "") {
			if strings.Contains(o.name, "alloy") || strings.Contains(o.name, "agent") || strings.Contains(o.name, "minio") {
				t.Errorf("there is %v", o)
			}
		}
	})
}

// Mimir's endpoint and keys stand once; its four stores differ in their bucket.
func TestMimirHasOneEndpoint(t *testing.T) {
	check := func(t *testing.T, config map[string]any) {
		t.Helper()
		common := at(config, "common", "storage", "s3")
		for key, want := range map[string]string{"endpoint": "kalypso-minio.minio.svc.cluster.local:9000",
			"access_key_id": "${AWS_ACCESS_KEY_ID}", "secret_access_key": "${AWS_SECRET_ACCESS_KEY}"} {
			if got := text(common, key); got != want {
				t.Errorf("common %s is %q, want %q", key, got, want)
			}
		}
		for store, bucket := range map[string]string{"blocks_storage": "mimir-blocks", "ruler_storage": "mimir-ruler", "alertmanager_storage": "mimir-alertmanager"} {
			if diff := cmp.Diff(at(config, store, "s3"), any(map[string]any{"bucket_name": bucket})); diff != "" {
				t.Errorf("%s (-got +want):\n%s", store, diff)
			}
		}
		if at(config, "ingest_storage", "enabled") != false {
			t.Error("it writes through Kafka")
		}
		if at(config, "ingester", "push_grpc_method_enabled") != true {
			t.Error("ingesters take no pushes, and nothing else gives them samples")
		}
	}
	for _, profile := range profilesOf(t, "kalypso-mimir") {
		values := standInValues(t, "kalypso-mimir", profile)
		config, _ := at(values, "mimir", "structuredConfig").(map[string]any)
		check(t, config)
		for _, part := range []string{"kafka", "minio", "rollout_operator"} {
			if at(values, part, "enabled") != false {
				t.Errorf("profile %q: %s is not off", profile, part)
			}
		}
	}
	t.Run("upstream", func(t *testing.T) {
		objects := upstream(t, "kalypso-mimir", "")
		check(t, parseYAML(t, text(find(t, objects, "ConfigMap", "mimir-config").fields, "data", "mimir.yaml")))
		for _, o := range objects {
			if strings.Contains(o.name, "kafka") || strings.Contains(o.name, "rollout") || strings.HasSuffix(o.kind, "WebhookConfiguration") {
				t.Errorf("there is %v", o)
			}
		}
	})
}

// Istio's chart of the gateway refused every value of a wrapper until 1.29.
func TestGatewayAcceptsItsValues(t *testing.T) {
	minor := regexp.MustCompile(`^1\.(\d+)\.`).FindStringSubmatch(pins["kalypso-istio-gateway"].version)
	if minor == nil || len(minor[1]) < 2 || minor[1] < "29" {
		t.Errorf("the gateway is pinned to %s", pins["kalypso-istio-gateway"].version)
	}
	for _, chart := range []string{"kalypso-istio-base", "kalypso-istiod"} {
		if pins[chart].version != pins["kalypso-istio-gateway"].version {
			t.Errorf("%s and the gateway are of different versions", chart)
		}
	}
	t.Run("upstream", func(t *testing.T) {
		for _, profile := range profilesOf(t, "kalypso-istio-gateway") {
			c := containers(find(t, upstream(t, "kalypso-istio-gateway", profile), "Deployment", "kalypso-gateway"))
			if len(c) != 1 || text(c[0], "image") != "auto" {
				t.Errorf("profile %q: its containers are %v", profile, c)
			}
		}
	})
}

// The profiler is there without being asked for, and nobody has to build it.
func TestProfilerIsOnByDefault(t *testing.T) {
	o := find(t, agentObjects(t, "", map[string]any{}), "DaemonSet", agentChart)
	if image := text(containers(o)[0], "image"); !strings.Contains(image, "/") || forbiddenImage(image) != "" {
		t.Errorf("its image is %s", image)
	}
	if at(podSpec(o), "nodeSelector", "kubernetes.io/os") != "linux" || len(podSpec(o)["nodeSelector"].(map[string]any)) != 1 {
		t.Errorf("it is only on nodes with %v", podSpec(o)["nodeSelector"])
	}
	settings := parseYAML(t, text(find(t, agentObjects(t, "", map[string]any{}), "ConfigMap", agentChart).fields, "data", "agent.yaml"))
	if got := text(settings, "otlp.endpoint"); got != "pyroscope.pyroscope.svc.cluster.local:4040" {
		t.Errorf("it sends profiles to %q", got)
	}
}

// What Loki's chart does by default that one node has no room for.
func TestLokiFitsOneNode(t *testing.T) {
	values := standInValues(t, "kalypso-loki", "")
	for _, part := range []string{"chunksCache", "resultsCache", "minio", "lokiCanary", "test", "rollout_operator"} {
		if at(values, part, "enabled") != false {
			t.Errorf("%s is not off", part)
		}
	}
	required, ok := at(values, "gateway", "affinity", "podAntiAffinity", "requiredDuringSchedulingIgnoredDuringExecution").([]any)
	if !ok || len(required) != 0 {
		t.Errorf("two gateways may not be on one node: %v", required)
	}
}

func TestTempoMakesMetrics(t *testing.T) {
	values := standInValues(t, "kalypso-tempo", "")
	if len(list(values, "tempo", "overrides", "defaults", "metrics_generator", "processors")) == 0 {
		t.Error("the generator has no processors, and makes nothing")
	}
	if at(values, "tempo", "metricsGenerator", "enabled") != true {
		t.Error("there is no generator")
	}
}

// K3s does not enforce the sizes of volumes; only retention keeps disks from
// filling up.
func TestRetention(t *testing.T) {
	for _, test := range []struct {
		chart string
		path  []string
	}{
		{"kalypso-mimir", []string{"mimir", "structuredConfig", "limits", "compactor_blocks_retention_period"}},
		{"kalypso-loki", []string{"loki", "limits_config", "retention_period"}},
		{"kalypso-tempo", []string{"tempo", "retention"}},
	} {
		for _, profile := range profilesOf(t, test.chart) {
			if text(standInValues(t, test.chart, profile), test.path...) == "" {
				t.Errorf("%s with profile %q keeps everything", test.chart, profile)
			}
		}
	}
}

// profilesOf a chart, its own values among them.
func profilesOf(t *testing.T, chart string) []string {
	t.Helper()
	return slices.DeleteFunc(slices.Clone(profiles), func(p string) bool {
		return p != "" && !hasFile(t, chart, "profiles/"+p+".yaml")
	})
}
