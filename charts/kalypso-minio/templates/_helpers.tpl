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

{{/* Where buckets are to be made; empty where they are not ours to make. */}}
{{- define "kalypso-minio.endpoint" -}}
{{- if and .Values.enabled .Values.buckets.enabled .Values.buckets.names }}
{{- if eq .Values.objectStore.kind "external" }}{{ .Values.objectStore.external.endpoint }}
{{- else }}http://kalypso-minio.{{ .Release.Namespace }}.svc.cluster.local:9000
{{- end }}
{{- end }}
{{- end }}

{{/* The pod that makes buckets. Its labels are none that the Service selects. */}}
{{- define "kalypso-minio.bucketsPod" -}}
metadata:
  labels:
    app.kubernetes.io/name: kalypso-minio-buckets
    app.kubernetes.io/instance: {{ .Release.Name }}
spec:
  # A pod for each attempt, so that the log of one that failed can be read.
  restartPolicy: Never
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    seccompProfile: {type: RuntimeDefault}
  containers:
    - name: buckets
      image: "{{ .Values.buckets.image.repository }}:{{ .Values.buckets.image.tag | default .Chart.AppVersion }}"
      imagePullPolicy: {{ .Values.imagePullPolicy }}
      args:
        - buckets
        - --endpoint={{ include "kalypso-minio.endpoint" . }}
        {{- with and (eq .Values.objectStore.kind "external") .Values.objectStore.external.region }}
        - --region={{ . }}
        {{- end }}
        {{- toYaml .Values.buckets.names | nindent 8 }}
      env:
        - name: AWS_ACCESS_KEY_ID
          valueFrom: {secretKeyRef: {name: {{ .Values.existingSecret }}, key: rootUser}}
        - name: AWS_SECRET_ACCESS_KEY
          valueFrom: {secretKeyRef: {name: {{ .Values.existingSecret }}, key: rootPassword}}
      resources:
        {{- toYaml .Values.buckets.resources | nindent 8 }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {drop: [ALL]}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
