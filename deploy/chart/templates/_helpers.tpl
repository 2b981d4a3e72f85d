{{/* What every object of the chart is marked with. Helm adds whose release it is. */}}
{{- define "warren.labels" -}}
app.kubernetes.io/name: warren
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "warren.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* A plain manifest of deploy/kubernetes, in the namespace of the release. */}}
{{- define "warren.plain" -}}
{{- $file := printf "files/%s" .file -}}
{{- .context.Files.Get $file | replace "warren-system" .context.Release.Namespace -}}
{{- end }}

{{/* Whether the server knows from which node a token comes, and has policies that look at it. */}}
{{- define "warren.identity" -}}
{{- if semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version -}}
enforced
{{- else if not .Values.acceptSharedIdentity -}}
{{- fail (printf "Kubernetes %s does not tell the daemons of different nodes apart: whoever takes one node over could write the records of all and take their traffic. Upgrade to 1.30 or newer, or set acceptSharedIdentity=true to install it all the same." .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- end }}

{{/* Variables of a container that say where the API server is, if somebody has set that. */}}
{{- define "warren.api" -}}
{{- with .Values.api.host }}
- name: KUBERNETES_SERVICE_HOST
  value: {{ . | quote }}
{{- end }}
{{- with .Values.api.port }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ . | quote }}
{{- end }}
{{- end }}
