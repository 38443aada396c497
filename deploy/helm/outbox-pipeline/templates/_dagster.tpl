{{/*
dagster.yaml: the file of the launcher, with what values say otherwise. The files are copies, since a chart cannot read
beside itself, and links do not survive every way a chart goes; a test compares them.
*/}}
{{- define "outbox.dagsterYaml" -}}
{{- $instance := .Files.Get (printf "files/dagster/%s.yaml" .Values.runs.launcher) | fromYaml -}}
{{- $_ := set $instance.concurrency.runs "max_concurrent_runs" (int .Values.runs.maxConcurrent) -}}
{{- if eq .Values.runs.launcher "kubernetes" -}}
{{- $config := $instance.run_launcher.config -}}
{{- $container := $config.run_k8s_config.container_config -}}
{{- $pod := $config.run_k8s_config.pod_spec_config -}}
{{- $_ := set $config "image_pull_policy" .Values.image.pullPolicy -}}
{{- if .Values.image.pullSecrets -}}
{{- $_ := set $config "image_pull_secrets" (include "outbox.pullSecrets" . | fromYamlArray) -}}
{{- end -}}
{{- if .Values.settings.OUTBOX_BATCH_MAX_BYTES -}}
{{- $_ := set $container.resources.requests "memory" (include "outbox.memory" (dict "root" . "runs" 1 "times" 3)) -}}
{{- $_ := set $container.resources.limits "memory" (include "outbox.memory" (dict "root" . "runs" 1 "times" 9)) -}}
{{- end -}}
{{- if .Values.certificatesSecret -}}
{{- $volume := dict "name" "certificates" "secret" (dict "secret_name" .Values.certificatesSecret) -}}
{{- $mount := dict "name" "certificates" "mount_path" "/etc/outbox/certificates" "read_only" true -}}
{{- $_ := set $pod "volumes" (append $pod.volumes $volume) -}}
{{- $_ := set $container "volume_mounts" (append $container.volume_mounts $mount) -}}
{{- end -}}
{{- range $name, $value := dict "node_selector" .Values.nodeSelector "tolerations" .Values.tolerations "affinity" .Values.affinity -}}
{{- if $value -}}
{{- $_ := set $pod $name $value -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{ toYaml $instance }}
{{- end -}}

{{- define "outbox.workspaceYaml" -}}
# The state of the sensors belongs to the location's name: keep it.
load_from:
  - grpc_server: {host: {{ include "outbox.fullname" . }}-code, port: 4000, location_name: outbox_pipeline}
{{- end -}}
