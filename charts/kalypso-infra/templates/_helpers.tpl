{{- define "kalypso-infra.labels" -}}
app.kubernetes.io/name: kalypso-infra
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "kalypso-infra.account" -}}
{{ .Values.serviceAccount.name | default .Release.Name }}
{{- end }}

{{- define "kalypso-infra.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* What both containers have. */}}
{{- define "kalypso-infra.container" -}}
image: {{ include "kalypso-infra.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- with .Values.env }}
env:
  {{- toYaml . | nindent 2 }}
{{- end }}
resources:
  {{- toYaml .Values.resources | nindent 2 }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{- define "kalypso-infra.pod" -}}
metadata:
  labels:
    app.kubernetes.io/name: kalypso-infra
    app.kubernetes.io/instance: {{ .Release.Name }}
  annotations:
    # Other settings are another pod, and so another Job.
    checksum/settings: {{ toYaml .Values.settings | sha256sum }}
spec:
  # A pod for each attempt, so that the log of one that failed can be read.
  restartPolicy: Never
  serviceAccountName: {{ include "kalypso-infra.account" . }}
  enableServiceLinks: false
  # An installation that is told to stop ends what it has begun.
  terminationGracePeriodSeconds: 60
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    fsGroup: 65532
    seccompProfile: {type: RuntimeDefault}
  {{- if not .Values.charts.volume }}
  initContainers:
    - name: charts
      {{- include "kalypso-infra.container" . | nindent 6 }}
      args: [charts, pull, --dir=/charts, --file=/etc/kalypso/kalypso.yaml, --profile={{ .Values.profile }}]
      volumeMounts:
        - {name: settings, mountPath: /etc/kalypso, readOnly: true}
        - {name: charts, mountPath: /charts}
        - {name: tmp, mountPath: /tmp}
  {{- end }}
  containers:
    - name: install
      {{- include "kalypso-infra.container" . | nindent 6 }}
      args:
        - install
        - --yes
        # The settings are all there is: one that was taken out of them is gone.
        - --reset-values
        - --file=/etc/kalypso/kalypso.yaml
        - --profile={{ .Values.profile }}
        - --charts=/charts
        - --timeout={{ .Values.timeout }}
        {{- with .Values.args }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      volumeMounts:
        - {name: settings, mountPath: /etc/kalypso, readOnly: true}
        - {name: charts, mountPath: /charts, readOnly: true}
        - {name: tmp, mountPath: /tmp}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  volumes:
    - name: settings
      configMap: {name: {{ .Release.Name }}}
    - name: charts
      {{- if .Values.charts.volume }}
      {{- toYaml .Values.charts.volume | nindent 6 }}
      {{- else }}
      emptyDir: {sizeLimit: 128Mi}
      {{- end }}
    - name: tmp
      emptyDir: {sizeLimit: 256Mi}
{{- end }}

{{/* A Job cannot be changed: one that does something else is another one. */}}
{{- define "kalypso-infra.job" -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}-{{ include "kalypso-infra.pod" . | sha256sum | trunc 8 }}
{{- end }}
