{{/* What every stand-in is made of. */}}

{{- define "labels" -}}
{app.kubernetes.io/name: {{ .name }}, app.kubernetes.io/instance: {{ .root.Release.Name }}, app.kubernetes.io/managed-by: {{ .root.Release.Service }}}
{{- end }}

{{/* workload: a Deployment, StatefulSet or DaemonSet. It takes
       root   the chart's context
       kind, name
       of     the values that are about it: replicas, podAnnotations, resources
       ports  a list of {name, port}
       claim  size of a volume for each pod; empty: none
       env    more fields of the container: env, envFrom
*/}}
{{- define "workload" -}}
{{- $of := .of | default dict }}
---
apiVersion: apps/v1
kind: {{ .kind }}
metadata:
  name: {{ .name }}
  labels: {{ include "labels" . }}
  {{- if .root.Release.IsInstall }}
  annotations: {test.kalypso.dev/first: "true"} # as Istio's charts do: an upgrade renders otherwise
  {{- end }}
spec:
  {{- if ne .kind "DaemonSet" }}
  replicas: {{ $of.replicas | default $of.replicaCount | default 1 }}
  {{- end }}
  selector: {matchLabels: {app.kubernetes.io/name: {{ .name }}, app.kubernetes.io/instance: {{ .root.Release.Name }}}}
  {{- if eq .kind "StatefulSet" }}
  serviceName: {{ .name }}-headless
  podManagementPolicy: Parallel
  {{- if .claim }}
  volumeClaimTemplates:
    - metadata: {name: storage}
      spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: {{ .claim }}}}}
  {{- end }}
  {{- end }}
  template:
    metadata:
      labels: {{ include "labels" . }}
      annotations: {{ $of.podAnnotations | default dict | toJson }}
    spec:
      {{- if eq .kind "DaemonSet" }}
      tolerations: [{operator: Exists}]
      {{- end }}
      containers:
        - name: {{ .name }}
          image: registry.example.org/{{ .root.Chart.Name }}:{{ .root.Chart.Version }}
          resources: {{ $of.resources | default dict | toJson }}
          {{- with .ports }}
          ports:
            {{- range . }}
            - {name: {{ .name | quote }}, containerPort: {{ .port }}}
            {{- end }}
          {{- end }}
          {{- with .env }}
          {{- toYaml . | nindent 10 }}
          {{- end }}
          {{- if .claim }}
          volumeMounts: [{name: storage, mountPath: /data}]
          {{- end }}
{{- end }}

{{/* service: to the pods of the workload of the same name, or of "to". Ports are
     {name, port, target}. */}}
{{- define "service" }}
---
apiVersion: v1
kind: Service
metadata:
  name: {{ .name }}
  labels: {{ include "labels" . }}
spec:
  {{- if .headless }}
  clusterIP: None
  {{- end }}
  selector: {app.kubernetes.io/name: {{ .to | default .name }}}
  ports:
    {{- range .ports }}
    - {name: {{ .name | quote }}, port: {{ .port }}, targetPort: {{ .target | default .port }}}
    {{- end }}
{{- end }}

{{/* crd: a custom resource whose fields nobody checks. "convert" is the name of a
     Service that converts between its versions; the last version is stored. */}}
{{- define "crd" }}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: {{ .plural }}.{{ .group }}
  annotations: {{ .annotations | default dict | toJson }}
spec:
  group: {{ .group }}
  scope: {{ .scope | default "Namespaced" }}
  names: {kind: {{ .kind }}, listKind: {{ .kind }}List, plural: {{ .plural }}, singular: {{ lower .kind }}}
  {{- if .convert }}
  conversion:
    strategy: Webhook
    webhook:
      conversionReviewVersions: [v1]
      clientConfig: {service: {name: {{ .convert }}, namespace: {{ .root.Release.Namespace }}, path: /convert, port: 443}}
  {{- end }}
  versions:
    {{- $last := last .versions }}
    {{- range .versions }}
    - name: {{ . }}
      served: true
      storage: {{ eq . $last }}
      subresources: {status: {}}
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
    {{- end }}
{{- end }}

{{/* webhook: one entry of a webhook configuration. */}}
{{- define "webhook" }}
  - name: {{ .name }}
    admissionReviewVersions: [v1]
    sideEffects: None
    failurePolicy: {{ .policy }}
    timeoutSeconds: 10
    clientConfig: {service: {name: {{ .service }}, namespace: {{ .root.Release.Namespace }}, path: {{ .path | default "/validate" }}, port: 443}}
    {{- with .namespaces }}
    namespaceSelector: {{ toJson . }}
    {{- end }}
    rules: [{apiGroups: {{ toJson .groups }}, apiVersions: ["*"], operations: [CREATE, UPDATE], resources: {{ toJson .resources }}}]
{{- end }}
