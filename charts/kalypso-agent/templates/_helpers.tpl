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
{{- $ours := dict "listen" (printf "0.0.0.0:%d" (int .Values.port)) "listen.allow-remote" true "spool.dir" "/spool" "kubernetes.source" .Values.kubernetes.source -}}
{{- if eq .Values.kubernetes.source "kubelet" }}
{{- $_ := set $ours "kubernetes.kubelet.skip-verify" (.Values.kubernetes.kubelet.skipVerify | default false) }}
{{- end -}}
{{- toYaml (merge $ours .Values.config) -}}
{{- end }}

{{/* KEY=VALUE with commas, as the agent takes a setting from the environment.
     range goes through a map by its keys in order. */}}
{{- define "kalypso-agent.profileLabels" -}}
{{- $list := list -}}
{{- range $key, $value := .Values.labels }}{{ $list = append $list (printf "%s=%s" $key $value) }}{{ end -}}
{{- join "," $list -}}
{{- end }}
