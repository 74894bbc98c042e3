// Package check reads the files in deploy/ as those read them whom they are for: with Kubernetes's own types, Cloud Run's, and the
// messages of its API, after which its Terraform resources are named.
package check

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"cloud.google.com/go/run/apiv2/runpb"
	"github.com/hashicorp/hcl/v2/hclparse"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	run "google.golang.org/api/run/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"sigs.k8s.io/yaml"
)

func read(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// strictly decodes YAML, and refuses what the type has no field for.
func strictly[T any](t *testing.T, text []byte) *T {
	t.Helper()
	into := new(T)
	if err := yaml.UnmarshalStrict(text, into); err != nil {
		t.Error(err)
	}
	return into
}

func TestKubernetes(t *testing.T) {
	t.Parallel()
	servers, kinds := int32(0), map[string]int{}
	for _, text := range bytes.Split(read(t, "../kubernetes/holdfast.yaml"), []byte("\n---\n")) {
		var object struct{ Kind string }
		if err := yaml.Unmarshal(text, &object); err != nil {
			t.Fatal(err)
		}
		kinds[object.Kind]++
		switch object.Kind {
		case "Job":
			strictly[batchv1.Job](t, text)
		case "Deployment":
			d := strictly[appsv1.Deployment](t, text)
			servers = *d.Spec.Replicas + d.Spec.Strategy.RollingUpdate.MaxSurge.IntVal
			for _, e := range d.Spec.Template.Spec.Containers[0].Env {
				if e.Name == "HOLDFAST_MAX_INSTANCES" && e.Value != strconv.Itoa(int(servers)) {
					t.Errorf("%s is %s, and there are up to %d servers", e.Name, e.Value, servers)
				}
			}
		case "Service":
			strictly[corev1.Service](t, text)
		case "PodDisruptionBudget":
			strictly[policyv1.PodDisruptionBudget](t, text)
		default:
			t.Errorf("what is a %q?", object.Kind)
		}
	}
	if servers == 0 || len(kinds) != 4 {
		t.Errorf("there are %v", kinds)
	}
}

func TestCloudRunService(t *testing.T) {
	t.Parallel()
	s := strictly[run.Service](t, read(t, "../cloudrun/service.yaml"))
	most, err := strconv.Atoi(s.Spec.Template.Metadata.Annotations["autoscaling.knative.dev/maxScale"])
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, e := range s.Spec.Template.Spec.Containers[0].Env {
		if e.Name == "HOLDFAST_MAX_INSTANCES" {
			found = e.Value == strconv.Itoa(2*most)
		}
	}
	if !found {
		t.Errorf("HOLDFAST_MAX_INSTANCES is not twice maxScale, %d", most)
	}
}

// TestTerraform compares the resources of Cloud Run with the API's messages: the provider's schema has their names. It does not
// know which of them the provider leaves out.
func TestTerraform(t *testing.T) {
	t.Parallel()
	file, problems := hclparse.NewParser().ParseHCLFile("../cloudrun/main.tf")
	if problems.HasErrors() {
		t.Fatal(problems)
	}
	messages := map[string]proto.Message{
		"google_cloud_run_v2_service": &runpb.Service{}, "google_cloud_run_v2_job": &runpb.Job{},
	}
	seen := 0
	for _, b := range file.Body.(*hclsyntax.Body).Blocks {
		if m := messages[append(b.Labels, "")[0]]; b.Type == "resource" && m != nil {
			seen++
			named(t, b.Labels[0], b.Body, m.ProtoReflect().Descriptor(), "project", "location", "depends_on")
		}
	}
	if seen != len(messages) {
		t.Errorf("%d of %d resources were found", seen, len(messages))
	}
}

// named reports attributes and blocks that a message has no field for, and blocks that are no messages.
func named(t *testing.T, path string, body *hclsyntax.Body, m protoreflect.MessageDescriptor, terraforms ...string) {
	t.Helper()
	field := func(name string) protoreflect.FieldDescriptor {
		f := m.Fields().ByName(protoreflect.Name(name))
		if f == nil {
			t.Errorf("%s: %s has no field %q", path, m.Name(), name)
		}
		return f
	}
	for name := range body.Attributes {
		if !strings.Contains(" "+strings.Join(terraforms, " ")+" ", " "+name+" ") {
			field(name)
		}
	}
	for _, b := range body.Blocks {
		name, inner := b.Type, b.Body
		if name == "dynamic" {
			name, inner = b.Labels[0], b.Body.Blocks[0].Body
		}
		if f := field(name); f != nil && f.Message() != nil && !f.IsMap() {
			named(t, path+"."+name, inner, f.Message())
		} else if f != nil {
			t.Errorf("%s: %s is no block", path, name)
		}
	}
}

// Every variable is one that Holdfast reads, and every file that is mounted is there.
func TestVariablesAndFilesExist(t *testing.T) {
	t.Parallel()
	known := string(read(t, "../../docs/configuration.md"))
	variable := regexp.MustCompile(`\bHOLDFAST_[A-Z_]+[A-Z]\b`)
	for _, path := range []string{"../cloudrun/service.yaml", "../cloudrun/main.tf", "../kubernetes/holdfast.yaml", "../compose.yaml"} {
		all := variable.FindAllString(string(read(t, path)), -1)
		if len(all) < 4 {
			t.Errorf("%s has %v", path, all)
		}
		for _, name := range all {
			if !regexp.MustCompile(`\b` + strings.TrimSuffix(name, "_FILE") + `\b`).MatchString(known) {
				t.Errorf("%s: nothing reads %s", path, name)
			}
		}
	}
	for _, m := range regexp.MustCompile(`- (\./[^:]+):`).FindAllSubmatch(read(t, "../compose.yaml"), -1) {
		if _, err := os.Stat(filepath.Join("..", string(m[1]))); err != nil {
			t.Error(err)
		}
	}
}
