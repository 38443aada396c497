{{/*
Memory, from OUTBOX_BATCH_MAX_BYTES as deploy/dagster/kubernetes.yaml has it for a run: 512 MiB, and three times a batch
requested, nine times at most. Called with a dict of root, runs (how many at once) and times; rounded up to 256 MiB.
*/}}
{{- define "outbox.batchBytes" -}}
{{ .Values.settings.OUTBOX_BATCH_MAX_BYTES | default "160000000" }}
{{- end -}}

{{- define "outbox.memory" -}}
{{- $bytes := mulf (include "outbox.batchBytes" .root | float64) .times -}}
{{- $run := addf 512.0 (divf $bytes 1048576.0) -}}
{{ printf "%dMi" (mulf (ceil (divf (mulf $run .runs) 256.0)) 256.0 | int) }}
{{- end -}}

{{/* Resources of a process that has runs in it: what was given, or by the formula. */}}
{{- define "outbox.resourcesOfRuns" -}}
{{- if .given -}}
{{ toYaml .given }}
{{- else -}}
requests:
  cpu: {{ printf "%dm" (mul 250 .runs | int) }}
  memory: {{ include "outbox.memory" (dict "root" .root "runs" .runs "times" 3) }}
limits:
  memory: {{ include "outbox.memory" (dict "root" .root "runs" .runs "times" 9) }}
{{- end -}}
{{- end -}}
