{{/* What all pods share: no root, nothing written but below two folders that go with the pod, no stray variables. */}}
{{- define "outbox.pullSecrets" -}}
{{- range .Values.image.pullSecrets }}
- name: {{ . }}
{{- end }}
{{- end -}}

{{- define "outbox.pod" -}}
{{- with .Values.image.pullSecrets -}}
imagePullSecrets: {{- include "outbox.pullSecrets" $ | trim | nindent 2 }}
{{ end -}}
# Services named outbox-… would add variables that look like settings.
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The folders of a pod, with the files of the ConfigMap that is named. */}}
{{- define "outbox.volumes" -}}
volumes:
  - name: home
    emptyDir: {sizeLimit: 1Gi}
  - name: tmp
    emptyDir: {sizeLimit: 256Mi}
  - name: config
    configMap: {name: {{ .config }}}
  {{- with .root.Values.certificatesSecret }}
  - name: certificates
    secret: {secretName: {{ . }}}
  {{- end }}
{{- end -}}

{{- define "outbox.container" -}}
image: {{ include "outbox.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
volumeMounts:
  # Dagster looks for its file in DAGSTER_HOME, which it also writes to.
  - {name: home, mountPath: /var/lib/outbox}
  - {name: config, mountPath: /var/lib/outbox/dagster.yaml, subPath: dagster.yaml, readOnly: true}
  - {name: config, mountPath: /etc/outbox/workspace.yaml, subPath: workspace.yaml, readOnly: true}
  - {name: tmp, mountPath: /tmp}
  {{- if .Values.certificatesSecret }}
  - {name: certificates, mountPath: /etc/outbox/certificates, readOnly: true}
  {{- end }}
{{- end -}}

{{/* Variables that the chart sets itself. */}}
{{- define "outbox.folders" -}}
- {name: DAGSTER_HOME, value: /var/lib/outbox}
- {name: OUTBOX_HOME, value: /var/lib/outbox}
{{- end -}}

{{/* Keys of a Secret as variables of the same names, each process those that it reads; optional ones may be missing. */}}
{{- define "outbox.secrets" -}}
{{- range .keys }}
- name: {{ . }}
  valueFrom: {secretKeyRef: {name: {{ $.secret }}, key: {{ . }}}}
{{- end }}
{{- range .optional }}
- name: {{ . }}
  valueFrom: {secretKeyRef: {name: {{ $.secret }}, key: {{ . }}, optional: true}}
{{- end }}
{{- end -}}

{{/* What dagster.yaml reads to launch a run, which UI and daemon do, and the UI to end one. */}}
{{- define "outbox.launcherVariables" -}}
{{- if eq .Values.runs.launcher "kubernetes" }}
- {name: DAGSTER_K8S_RUN_IMAGE, value: {{ include "outbox.image" . | quote }}}
- {name: DAGSTER_K8S_RUN_NAMESPACE, value: {{ .Release.Namespace }}}
- {name: DAGSTER_K8S_RUN_SERVICE_ACCOUNT, value: {{ include "outbox.fullname" . }}-run}
- {name: DAGSTER_K8S_RUN_SECRET, value: {{ .Values.urls.secret }}}
- {name: DAGSTER_K8S_RUN_CONFIG_MAP, value: {{ include "outbox.fullname" . }}-settings}
{{- else if eq .Values.runs.launcher "celery" }}
{{- include "outbox.secrets" (dict "secret" .Values.urls.secret "keys" (list "OUTBOX_CELERY_BROKER" "OUTBOX_CELERY_BACKEND")) }}
{{- end }}
{{- end -}}

{{- define "outbox.envFrom" -}}
- configMapRef: {name: {{ include "outbox.fullname" . }}-settings}
{{- end -}}

{{/* A pod whose configuration has changed is another pod. */}}
{{- define "outbox.checksum" -}}
checksum/config: {{ print (include "outbox.dagsterYaml" .) (include "outbox.workspaceYaml" .) (toYaml .Values.settings) | sha256sum }}
{{- end -}}
