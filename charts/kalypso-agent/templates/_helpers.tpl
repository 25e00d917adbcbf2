{{/* Labels that select the pods. */}}
{{- define "kalypso-agent.selector" -}}
app.kubernetes.io/name: kalypso-agent
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "kalypso-agent.labels" -}}
{{ include "kalypso-agent.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* The agent's file of settings. toYaml sorts its keys. */}}
{{- define "kalypso-agent.config" -}}
{{- $ours := dict "listen" (printf "0.0.0.0:%d" (int .Values.port)) "listen.allow-remote" true "spool.dir" "/spool" "kubernetes.source" .Values.kubernetes.source "labels" .Values.labels "config.watch" true -}}
{{- if eq .Values.kubernetes.source "kubelet" }}
{{- $_ := set $ours "kubernetes.kubelet.skip-verify" (.Values.kubernetes.kubelet.skipVerify | default false) }}
{{- end -}}
{{- toYaml (merge $ours .Values.config) -}}
{{- end }}

{{/* An AppArmor profile as annotations name it. */}}
{{- define "kalypso-agent.appArmor" -}}
{{- if eq .type "Localhost" }}localhost/{{ .localhostProfile }}{{ else }}{{ get (dict "Unconfined" "unconfined" "RuntimeDefault" "runtime/default") .type }}{{ end -}}
{{- end }}

{{/* What of it takes a restart: all but the settings that docs/reference/configuration.md
     marks live, which agents read again from the file. */}}
{{- define "kalypso-agent.restarts" -}}
{{- $config := include "kalypso-agent.config" . | fromYaml -}}
{{- range list
  "frequency" "cpu.budget" "memory.budget" "labels" "service.name" "log.level"
  "include.service" "include.comm" "include.cgroup" "include.namespace"
  "exclude.service" "exclude.comm" "exclude.cgroup" "exclude.namespace"
  "kubernetes.selector" "kubernetes.opt-in" }}{{ $config = omit $config . }}{{ end -}}
{{- toYaml $config -}}
{{- end }}
