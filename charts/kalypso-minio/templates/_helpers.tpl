{{/* Labels that select the pods. */}}
{{- define "kalypso-minio.selector" -}}
app.kubernetes.io/name: kalypso-minio
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "kalypso-minio.labels" -}}
{{ include "kalypso-minio.selector" . }}
app.kubernetes.io/component: {{ .Values.objectStore.kind }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* "true" where a server is to run. */}}
{{- define "kalypso-minio.server" -}}
{{- if and .Values.enabled (ne .Values.objectStore.kind "external") }}true{{ end }}
{{- end }}
